"""The samples of a batch, followed through a forward pass: one family of torch functions a file.

Each rule says where the samples are in the result of a function, given where they are in its arguments.
A function that picks, sorts or mixes along them, or that has no rule, loses them: the layers behind it
are left to the generic engine.
"""

from __future__ import annotations

from trakstore.features.axes.following import Following
from trakstore.features.axes.marked_call import Arguments, MarkedCall
from trakstore.features.axes.marks import Axis, Mark, Placed, Places, Routed, Unplaced
from trakstore.features.axes.meeting import is_meeting, repeated_at

__all__ = [
    "Arguments",
    "Axis",
    "Following",
    "Mark",
    "MarkedCall",
    "Placed",
    "Places",
    "Routed",
    "Unplaced",
    "is_meeting",
    "repeated_at",
]

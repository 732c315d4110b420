"""Layers that are given no samples: positions, class tokens, what is computed of weights alone.

Their outputs are the same for every sample. Where the model gives them no batch dimension (a position
embedding of ``arange``), their gradients would come summed over the batch: such outputs are repeated
for each sample before the model goes on. Where the model has a row for each sample already, as of zeros
of shape (batch, time), the rows are counted on as the samples'. Passes of one and of two samples tell
which.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as tree

from trakstore.features.axes import Axis, Following, Mark, Unplaced
from trakstore.features.gradients import FAILURES, cut
from trakstore.features.layers import Call, Layer
from trakstore.features.recording import Key, Untrusted

__all__ = ["Constant", "Constants", "find_constants"]

Constant = Literal["rows", "repeated"]
Constants = dict[Key, Constant]


class _Shapes:
    """An observer that notes the outputs of layers without samples."""

    def __init__(self) -> None:
        self.seen: dict[Key, torch.Size] = {}

    def __call__(self, key: Key, layer: Layer, call: Call, output: Tensor, mark: Mark) -> Tensor:  # noqa: ARG002
        """See :class:`~trakstore.features.recording.Recorder`."""
        if mark is Unplaced.FREE:
            self.seen[key] = output.shape
        return output


def find_constants(
    forward: Callable[[Any, Any, Following], Any], first: Any, names: frozenset[str]
) -> Constants:
    """Layers that are given no samples, and which of them have a row for each.

    Parameters
    ----------
    forward : callable
        Runs the model on a batch, with an observer and what follows its samples.
    first : tree of Tensor
        A batch whose first sample is used.
    names : frozenset of str
        All parameters, which an error of the model is laid to.

    Raises
    ------
    Untrusted
        When the model cannot be watched.
    """
    once = cut(first, 0, 1)
    twice = tree.tree_map(lambda t: torch.cat([t, t]), once)
    shapes = []
    for count, batch in ((1, once), (2, twice)):
        seen = _Shapes()
        try:
            forward(batch, seen, Following(count))
        except torch.OutOfMemoryError:
            raise
        except FAILURES as error:  # the model cannot have it, or is broken, which others will say
            raise Untrusted(names, f"of an error ({error})") from error
        shapes.append(seen.seen)
    one, two = shapes
    found: Constants = {}
    for key in one.keys() & two.keys():
        if one[key] == two[key]:
            found[key] = "repeated"
        elif one[key][0] == 1 and two[key] == (2, *one[key][1:]):
            found[key] = "rows"
    return found


def placed(output: Tensor, how: Constant | None, batch: int) -> Axis | None:
    """Where the samples are in the output of a layer without samples; None where that is not known."""
    fits = how == "repeated" or (how == "rows" and output.ndim and len(output) == batch)
    return Axis(0) if fits else None

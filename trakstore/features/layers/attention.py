"""``nn.MultiheadAttention``: seen through, since all its parameters are used by linear layers.

Torch passes the whole of ``F.multi_head_attention_forward`` to a mode as one call, so that its products
stay hidden. A copy of the function in which the test for this says no is run instead: it calls
``linear`` for the input projections, packed or separate, and for the output projection, where they are
seen like any other layer.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch.nn.functional as F

__all__ = ["SEEN_THROUGH"]


def _seen_through(function: Any) -> Callable[..., Any]:
    """Copy a function, with another answer to the question whether torch functions are watched."""
    # The copy has globals of its own: torch's module stays as it is.
    names = {**function.__globals__, "has_torch_function": lambda _: False}
    copy = FunctionType(
        function.__code__, names, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


SEEN_THROUGH: dict[object, Callable[..., Any]] = {
    F.multi_head_attention_forward: _seen_through(F.multi_head_attention_forward)
}

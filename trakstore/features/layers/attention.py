"""``nn.MultiheadAttention``: seen through, since all its parameters are used by linear layers.

Torch hands the whole of ``F.multi_head_attention_forward`` over and would never show the products in
it. A copy of the function whose test for handing over says no calls ``linear`` for the packed, or each
of three, input projections and for the output projection, where they are seen like any other.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch.nn.functional as F

__all__ = ["SEEN_THROUGH"]


def _seen_through(function: Any) -> Callable[..., Any]:
    """Copy a function, with another answer to whether torch functions are watched."""
    # Only the names that the copy reads are other ones: torch's own module stays as it is.
    names = {**function.__globals__, "has_torch_function": lambda _: False}
    copy = FunctionType(
        function.__code__, names, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


SEEN_THROUGH: dict[object, Callable[..., Any]] = {
    F.multi_head_attention_forward: _seen_through(F.multi_head_attention_forward)
}

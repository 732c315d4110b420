"""Functions in which a tensor without samples meets the samples, and their place in it there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from torch import Tensor

from trakstore.features.axes.broadcast import LINED_UP
from trakstore.features.axes.marks import FREE, Axis, Mark, Placed, Routed
from trakstore.features.axes.table import canonical, rule_of

__all__ = ["is_meeting", "repeated_at"]

_ATTENTION = "scaled_dot_product_attention"


@cache
def is_meeting(function: Any) -> bool:
    """Tell whether a function lines its tensors up from the last dimension on, and gives a new one."""
    name: str = getattr(function, "__name__", "")
    in_place = name.endswith("_") and not name.endswith("__")
    known = canonical(function) in LINED_UP or canonical(function) == _ATTENTION
    return known and not in_place and rule_of(function).rule is not None


def repeated_at(
    tensor: Tensor, others: Sequence[Tensor], of: Callable[[Tensor], Mark]
) -> tuple[list[int], Placed] | None:
    """Shape of a tensor with a row for each sample, and the samples' place in that.

    Parameters
    ----------
    tensor : Tensor
        One without samples.
    others : sequence of Tensor
        All that it meets.
    of : callable
        Gives the mark of a tensor.

    Returns
    -------
    shape : list of int
        That of the tensor, but for the samples' dimension.
    axis : Axis or Routed
    None where the samples are in no single place, or the tensor has more than one entry there.
    """
    marks = [(one, of(one)) for one in others if of(one) is not FREE]
    met = {
        (mark.dim - one.ndim, one.shape[mark.dim], mark._replace(dim=0))
        for one, mark in marks
        if isinstance(mark, Axis | Routed)
    }
    if len(met) != 1 or not all(isinstance(mark, Axis | Routed) for _, mark in marks):
        return None
    (behind, size, placed) = met.pop()
    shape = [1] * (-behind - tensor.ndim) + list(tensor.shape)
    if shape[behind] != 1:
        return None
    shape[behind] = size
    return shape, placed._replace(dim=len(shape) + behind)

"""Numbers that each sample alone would give, beside the one number made of all of them.

A model with ``if mask.all():`` takes one branch for the whole batch, and a sample alone may have taken
the other. If the question is simple enough to be asked of each sample, as most language models'
questions about padding are, the samples with another answer are known. A few of these are then computed
alone, rather than all samples of every batch.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trakstore.features.axes.marked_call import MarkedCall
from trakstore.features.axes.marks import FREE, Axis

__all__ = ["RULES", "Alone", "AloneRule"]


class Alone(NamedTuple):
    """Numbers of the samples alone.

    Attributes
    ----------
    values : Tensor, shape (batch,)
    entries : int
        Number of entries, of all samples together, behind the number of all; 0 where it does not
        matter.
    """

    values: Tensor
    entries: int


# Returns the samples' numbers for a call's result, given those of its arguments; None if unknown.
AloneRule = Callable[[MarkedCall, Callable[[Tensor], Alone | None]], Alone | None]


def _reduced(function: Callable[[Tensor, int], Tensor]) -> AloneRule:
    """Make a rule for functions that reduce all entries of a tensor to one number."""

    def rule(call: MarkedCall, _: Callable[[Tensor], Alone | None]) -> Alone | None:
        mark = call.mark(call.first)
        if len(call.args) + len(call.kwargs) > 1 or not isinstance(mark, Axis):
            return None
        front = mark.front(call.first.detach(), call.batch)
        return None if front is None else Alone(function(front.flatten(1), 1), call.first.numel())

    return rule


def _entrywise(function: Callable[..., Tensor]) -> AloneRule:
    """Make a rule for functions that compare such a number with another, or join two answers."""

    def rule(call: MarkedCall, alone: Callable[[Tensor], Alone | None]) -> Alone | None:
        known = {id(tensor): alone(tensor) for tensor in call.tensors}
        entries = {one.entries for one in known.values() if one is not None} - {0}
        given = []
        for one in call.args:
            own = known[id(one)] if isinstance(one, Tensor) else None
            if isinstance(one, Tensor) and own is None and (one.ndim or call.mark(one) is not FREE):
                return None
            if not isinstance(one, Tensor) and one in entries:
                # In `mask.sum() == mask.numel()` a sample alone has its own share of the entries. In
                # any other comparison the same number may be meant as it is.
                if function not in (operator.eq, operator.ne):
                    return None
                one = one // call.batch
            given.append(one if own is None else own.values)
        return Alone(function(*given), 0)

    return rule


_REDUCTIONS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "all": lambda x, dim: x.all(dim),
    "any": lambda x, dim: x.any(dim),
    "sum": lambda x, dim: x.sum(dim),
    "mean": lambda x, dim: x.mean(dim),
    "count_nonzero": lambda x, dim: x.count_nonzero(dim),
    **dict.fromkeys(("max", "amax"), torch.amax),
    **dict.fromkeys(("min", "amin"), torch.amin),
}
_COMPARISONS: dict[str, Callable[..., Any]] = {
    name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge", "and_", "or_")
}
RULES: dict[str, AloneRule] = {
    **{name: _reduced(function) for name, function in _REDUCTIONS.items()},
    **{name.strip("_"): _entrywise(function) for name, function in _COMPARISONS.items()},
    **dict.fromkeys(("logical_not", "invert"), _entrywise(torch.logical_not)),
}

"""Rows that the data send somewhere: tokens sorted by expert, picked for it, and put back.

A row of such a tensor belongs to one sample, known only from the numbers in the index. The ordinary
rules judge functions of such rows, as if each row were a sample.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trakstore.features.axes.marked_call import MarkedCall, Rule
from trakstore.features.axes.marks import FREE, LOST, Axis, Mark, Places, Routed, Rows

__all__ = ["RULES", "Route", "row_by_row"]

_ATTRIBUTE = "_trakstore_rows"


class Route(NamedTuple):
    """Marks of the results of a function that routes rows.

    Attributes
    ----------
    marks : Mark or list of Mark
    certain : bool
        Whether each sample's rows surely are where they would be without the other samples.
    """

    marks: Mark | list[Mark]
    certain: bool


def row_by_row(call: MarkedCall, rule: Rule | None) -> Mark | list[Mark]:
    """Return marks of a function of routed rows, each treated as a sample of its own."""
    rows = {mark.rows for tensor in call.tensors if isinstance(mark := call.mark(tensor), Routed)}
    if rule is None or len(rows) != 1:
        return LOST
    (own,) = rows

    def mark_of(tensor: Tensor) -> Mark:
        mark = call.mark(tensor)
        if isinstance(mark, Routed):
            return Axis(mark.dim)
        return LOST if isinstance(mark, Axis | Places) else mark

    def routed(mark: Mark) -> Mark:
        if not isinstance(mark, Axis):
            return mark
        return Routed(mark.dim, own) if mark[1:] == (1, 1) else LOST

    alike = MarkedCall(call.args, call.kwargs, call.out, call.tensors, mark_of, len(own.samples))
    marks = rule(alike)
    return [routed(one) for one in marks] if isinstance(marks, list) else routed(marks)


def _sorted(call: MarkedCall) -> Route | None:
    """Route numbers, one for each row, that are sorted over all samples."""
    first, mark = call.first, call.mark(call.first)
    pair = isinstance(call.out, tuple)
    if first.ndim != 1:
        return None
    order = call.out[1] if pair else call.out
    if isinstance(mark, Places) and mark.whole and not pair:
        return Route(Places(mark.rows, mark.source, "back"), True)  # the inverse of an order
    if not isinstance(mark, Axis):
        return None
    rows = Rows(mark.sample_of(order.detach(), call.batch), first.detach()[order.detach()])
    places = Places(rows, mark, "whole")
    return Route([Routed(0, rows), places] if pair else places, True)


def _divided(call: MarkedCall) -> Route | None:
    """Route an order by the numbers that several rows have in common: of tokens, not of choices."""
    mark, by = call.mark(call.first), call.argument(1, "other")
    if not isinstance(mark, Places) or not mark.whole or not isinstance(by, int) or by < 1:
        return None
    before, after = mark.source[1:]
    if before != 1 or after % by:
        return None
    return Route(Places(mark.rows, Axis(0, 1, after // by), "divided"), True)


def _picked(call: MarkedCall) -> Route | None:
    """Route the rows that an index picks: by an order that is known, or by the index's own numbers."""
    choice = call.args[1]
    if isinstance(choice, Tensor) and not choice.ndim and choice.dtype in _INTEGERS:
        # This picks one of several experts, chosen by some sample: the result holds no samples.
        lost = call.mark(choice) is LOST and call.mark(call.first) is FREE
        return Route(FREE, False) if lost else None
    if isinstance(choice, Tensor) and choice.dtype == torch.bool:
        return _masked(call, choice)
    index = _row_index(call)
    if index is None:
        return None
    of_index, mark = call.mark(index), call.mark(call.first)
    if isinstance(of_index, Places):
        if of_index.what == "back":
            own = isinstance(mark, Routed) and mark == Routed(0, of_index.rows)
            return Route(of_index.source, True) if own else None
        return Route(Routed(0, of_index.rows), True) if mark == of_index.source else None
    if of_index is LOST and isinstance(mark, Axis) and mark.dim == 0:
        return Route(Routed(0, _rows_by(index, mark, call.batch)), False)
    return None


def _masked(call: MarkedCall, mask: Tensor) -> Route | None:
    """Route the rows that a mask keeps, which has the samples where the tensor has them."""
    mark = call.mark(call.first)
    if not isinstance(mark, Axis) or call.mark(mask) != mark:
        return None
    return Route(Routed(0, _rows_by(mask, mark, call.batch)), True)


def _row_index(call: MarkedCall) -> Tensor | None:
    """Return the index of ``x[index]``, ``x[index, others, None]`` or ``x.index_select(0, index)``."""
    if isinstance(call.argument(2, "index"), Tensor):
        index, rest = call.argument(2, "index"), []
        if call.argument(1, "dim") != 0:
            return None
    else:
        parts = call.args[1]
        index, *rest = parts if isinstance(parts, tuple) and parts else (parts,)
    for one in rest:
        beside = isinstance(one, Tensor) and one.ndim == 1 and one.dtype in _INTEGERS
        if not beside and one is not None and one != slice(None):
            return None
    whole = isinstance(index, Tensor) and index.ndim == 1 and index.dtype in _INTEGERS
    return index if whole else None


_INTEGERS = (torch.int64, torch.int32)


def _rows_by(index: Tensor, axis: Axis, batch: int) -> Rows:
    """Return the rows that an index or a mask picks along an axis: the same ones for the same index."""
    known: dict[Any, Rows] = index.__dict__.setdefault(_ATTRIBUTE, {})
    key = (axis, batch, index._version)
    if key not in known:
        if index.dtype == torch.bool:
            entries = index.nonzero()[:, axis.dim]
        else:
            entries = index.detach() % (axis.before * batch * axis.after)
        known[key] = Rows(axis.sample_of(entries, batch), picked=True)
    return known[key]


def _put_back(call: MarkedCall) -> Route | None:
    """Route rows that are added where an index says, back to where they came from."""
    value = call.argument(3, "source")
    if call.argument(1, "dim") != 0 or not isinstance(value, Tensor):
        return None
    return _back(call, call.argument(2, "index"), value)


def _written(call: MarkedCall) -> Route | None:
    """Route rows that are written where an index says, or the order that undoes another."""
    first, index, value = call.args
    if not isinstance(index, Tensor) or not isinstance(value, Tensor):
        return None
    mark = call.mark(index)
    if index.dtype == torch.bool:
        return _kept(call, index, value)
    if isinstance(mark, Places) and call.mark(value) is FREE and call.mark(first) is FREE:
        counted = torch.arange(len(index), device=value.device, dtype=value.dtype)
        if not mark.whole or first.shape != index.shape or not torch.equal(value, counted):
            return None
        return Route(Places(mark.rows, mark.source, "back"), True)
    # Rows that are not written keep what was there before: the result is certain only if all are.
    whole = isinstance(mark, Places) and mark.whole and len(first) == len(index)
    return _back(call, index, value) if whole else None


def _kept(call: MarkedCall, mask: Tensor, value: Tensor) -> Route | None:
    """Route rows that a mask kept, back to where it is true."""
    mark, of_value, of_mask = call.mark(call.first), call.mark(value), call.mark(mask)
    if not isinstance(of_value, Routed) or of_value.dim or not isinstance(of_mask, Axis):
        return None
    same = of_value.rows is _rows_by(mask, of_mask, call.batch)
    return Route(of_mask, True) if same and mark in (FREE, of_mask) else None


def _back(call: MarkedCall, index: Tensor, value: Tensor) -> Route | None:
    of_value, of_index, mark = call.mark(value), call.mark(index), call.mark(call.first)
    if not isinstance(of_value, Routed) or of_value.dim:
        return None
    if isinstance(of_index, Places):
        axis = of_index.source
        same = of_index.what != "back" and of_index.rows is of_value.rows
        certain = True
    else:
        # A place that was picked by this index before, of which these rows come.
        known: dict[Any, Rows] = index.__dict__.get(_ATTRIBUTE, {})
        own = [a for (a, _, version), rows in known.items()
               if rows is of_value.rows and version == index._version]  # fmt: skip
        axis, same, certain = (own or [Axis(0)])[0], bool(own), False
    if not same or mark not in (FREE, axis):
        return None
    size = axis.before * call.batch * axis.after
    return Route(axis, certain) if call.first.shape[0] == size else None


def _grouped(call: MarkedCall) -> Route | None:
    """Route a product of rows with the matrix of each one's group, as their sorted numbers say."""
    first, weight, ends = call.first, call.argument(1, "mat_b"), call.argument(2, "offs")
    mark = call.mark(first)
    if not isinstance(mark, Routed) or mark.dim or mark.rows.keys is None:
        return None
    if call.mark(weight) is not FREE or weight.ndim != 3 or not isinstance(ends, Tensor):
        return None
    # The ends of groups were counted over all samples: compare them with each row's own number.
    count = torch.arange(len(first), device=ends.device, dtype=ends.dtype)
    groups = torch.searchsorted(ends, count, right=True)
    return Route(mark, True) if torch.equal(groups, mark.rows.keys.to(groups)) else None


def _made(call: MarkedCall) -> Route | None:
    """Route a function that looks only at the shape of an order."""
    return Route(FREE, True) if isinstance(call.mark(call.first), Places) else None


RULES: dict[str, Callable[[MarkedCall], Route | None]] = {
    **dict.fromkeys(("sort", "argsort"), _sorted),
    **dict.fromkeys(("floordiv", "floor_divide"), _divided),
    **dict.fromkeys(("getitem", "index_select"), _picked),
    "index_add": _put_back,
    "setitem": _written,
    "grouped_mm": _grouped,
    **dict.fromkeys(("empty_like", "zeros_like"), _made),
}

"""Functions that pick entries, put them somewhere, or lay tensors side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor

from trakstore.features.axes.along import last_dims, same_shape
from trakstore.features.axes.marked_call import MarkedCall, Rule, aligned, dims_of, with_free_rest
from trakstore.features.axes.marks import FREE, LOST, Axis, Mark, removed

__all__ = ["RULES"]

_WHOLE = slice(None)
_INDICES = (int, slice, Tensor, list, EllipsisType, type(None))


def _dim(call: MarkedCall, position: int, default: Any = None) -> int | None:
    """Return the dimension that a function works along, counted from the front."""
    dims = dims_of(call.argument(position, "dim", default), call.first.ndim)
    return None if dims is None else dims[0]


def _without(position: int, default: Any = None) -> Rule:
    """Make a rule of functions that pick along ``dim``, which the result does not have."""

    def rule(call: MarkedCall) -> Mark:
        mark = call.mark(call.first)
        if not isinstance(mark, Axis):
            return mark
        return removed(mark, dims_of(call.argument(position, "dim", default), call.first.ndim))

    return rule


def _gathered(call: MarkedCall) -> Mark:
    """Mark of ``gather`` and its like, which pick in each row by the same row of an index."""
    mark, dim, index = call.mark(call.first), _dim(call, 1), call.argument(2, "index")
    if not isinstance(mark, Axis):
        own = call.mark(index)
        return own if mark is FREE and dim is not None and own != Axis(dim) else LOST
    same = dim not in (None, mark.dim) and index.shape[mark.dim] == call.first.shape[mark.dim]
    return mark if same and call.mark(index) in (FREE, mark) else LOST


def _taken(call: MarkedCall) -> Mark:
    """Mark of ``take_along_dim``, whose dimension comes after the index."""
    index, dim = call.argument(1, "indices"), call.argument(2, "dim")
    return _gathered(call.of_first(dim=dim, index=index))


def _put_along(*others: tuple[int, str]) -> Callable[[MarkedCall], Mark]:
    """Make a rule of what puts tensors into the first along ``dim``, row by row in other dimensions.

    Parameters
    ----------
    *others : tuple of (position, name)
        Arguments that must have their samples where the first has them, if they are tensors.
    """

    def rule(call: MarkedCall) -> Mark:
        dim = _dim(call, 1)
        given = [call.argument(*other) for other in others]
        tensors = [call.first, *(one for one in given if isinstance(one, Tensor))]
        marks = {call.mark(tensor) for tensor in tensors} - {FREE}
        if not marks:
            return FREE
        mark = marks.pop()
        if marks or not isinstance(mark, Axis) or dim in (None, mark.dim):
            return LOST
        return mark if len({tensor.shape[mark.dim] for tensor in tensors}) == 1 else LOST

    return rule


def _put_at(call: MarkedCall) -> Mark:
    """Mark of what puts tensors, or a number, where an index says, in all rows alike."""
    if call.mark(call.argument(2, "index")) is not FREE:
        return LOST
    return _put_along((3, "source"), (3, "value"))(call)


def _index_selected(call: MarkedCall) -> Mark:
    """Mark of entries that an index picks, in all rows alike; or of a table, by the samples' index."""
    of_index, dim = call.mark(call.argument(2, "index")), _dim(call, 1)
    if of_index is FREE:
        return same_shape(1)(call)
    if call.mark(call.first) is not FREE or not isinstance(of_index, Axis) or dim is None:
        return LOST
    return Axis(dim, *of_index[1:])


def _joined(call: MarkedCall) -> Mark:
    """Mark of ``cat``: samples are in one place of all parts, and not along the seam."""
    ndim = call.result.ndim
    dim = dims_of(call.argument(1, "dim", call.kwargs.get("axis", 0)), ndim)
    # torch lets an empty vector stand beside anything
    full = [part for part in call.first if part.numel() or part.ndim == ndim]
    return _beside(
        [(call.mark(part), part.shape) for part in full], None if dim is None else dim[0]
    )


def _stacked(call: MarkedCall) -> Mark:
    """Mark of ``stack``, which makes a new dimension."""
    dim = dims_of(call.argument(1, "dim", 0), call.result.ndim)
    if dim is None:
        return LOST
    parts = [(call.mark(part), part.shape) for part in call.first]
    mark = _beside(parts, -1)
    return Axis(mark.dim + (dim[0] <= mark.dim), *mark[1:]) if isinstance(mark, Axis) else mark


def _beside(parts: Sequence[tuple[Mark, Sequence[int]]], seam: int | None) -> Mark:
    """Mark of parts that lie beside one another along a seam."""
    marks = {mark for mark, _ in parts} - {FREE}
    if not marks:
        return FREE
    mark = marks.pop()
    if marks or not isinstance(mark, Axis):
        return LOST if marks else mark
    sizes = {shape[mark.dim] if mark.dim < len(shape) else None for _, shape in parts}
    return LOST if seam in (None, mark.dim) or len(sizes) > 1 else mark


def _diagonal(call: MarkedCall) -> Mark:
    """Mark of a diagonal, which becomes the last dimension."""
    mark, ndim = call.mark(call.first), call.first.ndim
    if not isinstance(mark, Axis):
        return mark
    return removed(mark, dims_of((call.argument(2, "dim1", 0), call.argument(3, "dim2", 1)), ndim))


def _item(call: MarkedCall) -> Mark:
    """Mark of ``x[index]``."""
    mark, parts = call.mark(call.first), _parts(call.args[1], call.first.ndim)
    if isinstance(mark, Axis):
        place = None if parts is None else _place(parts, mark, call)
        return LOST if place is None else Axis(place, *mark[1:])
    if mark is not FREE:
        return mark
    if parts is None:
        return LOST
    of_index = [call.mark(part) for part in parts if isinstance(part, Tensor)]
    return FREE if all(one is FREE for one in of_index) else _looked_up(parts, call)


def _looked_up(parts: list[Any], call: MarkedCall) -> Mark:
    """Mark of a table without samples that an index of theirs is looked up in, as an embedding does."""
    index, *others = parts
    if not isinstance(index, Tensor) or index.dtype == torch.bool:
        return LOST
    return LOST if any(isinstance(other, Tensor) for other in others) else call.mark(index)


def _put(call: MarkedCall) -> Mark:
    """Mark of a tensor after ``x[index] = value``."""
    first, index, value = call.args
    mark, parts = call.mark(first), _parts(index, first.ndim)
    of_value = call.mark(value) if isinstance(value, Tensor) else FREE
    if parts is None or mark is LOST or of_value is LOST:
        return LOST
    chosen = [part for part in parts if isinstance(part, Tensor)]
    if {mark, of_value, *map(call.mark, chosen)} == {FREE}:
        return FREE
    if parts and isinstance(parts[0], Tensor) and parts[0].dtype == torch.bool:
        return _put_by_mask(call, parts, of_value)
    if any(isinstance(part, Tensor | list) for part in parts):
        return LOST
    if not isinstance(mark, Axis):
        if not isinstance(of_value, Axis):
            return of_value
        return _put_by_slices(parts, of_value, value.ndim, first.shape, value.shape)
    place = _place(parts, mark, call)
    if place is None or of_value is FREE:
        return LOST if place is None else mark
    kept = len([part for part in parts if not isinstance(part, int)])
    # The value is lined up with the end of what was picked, as in broadcasting.
    beside = isinstance(of_value, Axis) and of_value == Axis(place - kept + value.ndim, *mark[1:])
    return mark if beside else LOST


def _put_by_mask(call: MarkedCall, parts: list[Any], of_value: Mark) -> Mark:
    """Mark of a tensor in which a mask of its first dimensions chose what one number replaces."""
    first, _, value = call.args
    mask = parts[0]
    one_number = not isinstance(value, Tensor) or value.numel() == 1
    if not one_number or len(parts) - mask.ndim > first.ndim or of_value is not FREE:
        return LOST
    shape = (*mask.shape, *[1] * (first.ndim - mask.ndim))
    return aligned([(call.mark(first), first.shape), (call.mark(mask), shape)], first.shape)


def _put_by_slices(
    parts: list[Any], of_value: Axis, ndim: int, shape: Sequence[int], given: Sequence[int]
) -> Mark:
    """Mark of a tensor without samples that samples were written into by whole slices."""
    kept: list[int | None] = []  # dimension of the tensor, for each of the value's that is whole
    source = 0
    for part in parts:
        if part is None:
            kept.append(None)
            continue
        if not isinstance(part, int):
            kept.append(source if part == _WHOLE else None)
        source += 1
    place = of_value.dim - ndim + len(kept)
    dim = kept[place] if 0 <= place < len(kept) else None
    if dim is None or shape[dim] != given[of_value.dim]:
        return LOST
    return Axis(dim, *of_value[1:])


def _parts(index: Any, ndim: int) -> list[Any] | None:
    """Return an index as one entry a dimension, None for a new one; None for another kind of index."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if any(not isinstance(part, _INDICES) or isinstance(part, bool) for part in parts):
        return None
    used = sum(_width(part) for part in parts)
    dots = [i for i, part in enumerate(parts) if part is Ellipsis]
    at = dots[0] if dots else len(parts)
    parts[at : at + 1] = [_WHOLE] * (ndim - used)
    return parts


def _width(part: Any) -> int:
    """Return how many dimensions a part of an index stands for: a mask stands for all of its own."""
    if part is None or part is Ellipsis:
        return 0
    if isinstance(part, Tensor) and part.dtype in (torch.bool, torch.uint8):
        return part.ndim
    return 1


def _place(parts: list[Any], mark: Axis, call: MarkedCall) -> int | None:
    """Return the dimension of the result that has the samples; None if samples were picked."""
    # Tensors and lists in an index pick together, and their entries take as many dimensions as the
    # widest of them has. These come where the first one stands, or in front, as `_adjacent` tells. The
    # rest keeps its order: slices stay, integers go, None makes a new dimension.
    picks = [i for i, part in enumerate(parts) if isinstance(part, Tensor | list)]
    adjacent = _adjacent(parts)
    width = max((getattr(parts[i], "ndim", 1) for i in picks), default=0)
    source, before, place, rows = 0, 0, None, None  # dimensions of x, and of the result, so far
    for i, part in enumerate(parts):
        if picks and i == picks[0] and adjacent:
            before += width
        if part is None:
            before += 1
            continue
        samples = mark.dim in range(source, source + max(1, _width(part)))
        source += _width(part)
        if i in picks:
            rows = part if samples else rows
            continue
        if isinstance(part, int):
            if samples:
                return None
            continue
        if samples:
            if not _covers(part, call.first.shape[mark.dim]):
                return None
            place = before
        before += 1
    if rows is not None:
        return _in_order(rows, parts, picks, mark, call, adjacent)
    chosen = [parts[i] for i in picks if isinstance(parts[i], Tensor)]
    if place is None or any(isinstance(call.mark(one), Axis) for one in chosen):
        return None  # the index itself depends on samples: they would be in two places
    return place if adjacent else place + width


def _adjacent(parts: list[Any]) -> bool:
    """Tell whether picked dimensions stay where the index has them; otherwise they come first."""
    kept = [part for part in parts if not isinstance(part, int)]  # integers are taken out before
    picks = [i for i, part in enumerate(kept) if isinstance(part, Tensor | list)]
    return not picks or picks[-1] - picks[0] == len(picks) - 1


def _in_order(
    rows: Any, parts: list[Any], picks: list[int], mark: Axis, call: MarkedCall, adjacent: bool
) -> int | None:
    """Place of samples that were indexed by their own numbers, as in ``x[arange(batch), last]``.

    Indices may be broadcast: ``mask[arange(batch)[:, None, None, None], arange(keys)]`` gives a mask
    of attention.
    """
    every = [parts[i] for i in picks]
    if mark[1:] != (1, 1) or any(not isinstance(one, Tensor) for one in every):
        return None
    if rows.dtype == torch.bool or rows.numel() != call.batch or call.batch not in rows.shape:
        return None
    # Dimensions are aligned from the last one on: `place` is the samples' among the picked ones.
    width = max(one.ndim for one in every)
    place: int = width - rows.ndim + list(rows.shape).index(call.batch)
    for other in every:
        own = place - (width - other.ndim)
        of_other = call.mark(other)
        if other is rows or of_other == Axis(own):
            continue
        alone = own < 0 or other.shape[own] == 1 or width == 1
        if of_other is not FREE or not alone:
            return None
    # This is the one place where a rule reads numbers: no mark says that a tensor counts the samples.
    counted = torch.arange(call.batch, device=rows.device, dtype=rows.dtype)
    if not torch.equal(rows.reshape(-1), counted):
        return None
    before = len([p for p in parts[: picks[0]] if not isinstance(p, int)]) if adjacent else 0
    return before + place


def _covers(part: slice, size: int) -> bool:
    """Tell whether a slice is all of a dimension, in its order."""
    if part == _WHOLE:
        return True
    if not all(isinstance(one, int | None) for one in (part.start, part.stop, part.step)):
        return False
    return part.indices(size) == (0, size, 1)


RULES: dict[str, Rule] = {
    "getitem": _item,
    "setitem": _put,
    **dict.fromkeys(
        ("chunk", "split", "tensor_split", "split_with_sizes"), with_free_rest(same_shape(2, 0))
    ),
    "narrow": with_free_rest(same_shape(1)),
    "index_select": _index_selected,
    "select": with_free_rest(_without(1)),
    **dict.fromkeys(("unbind", "iter"), _without(1, 0)),
    "gather": _gathered,
    "take_along_dim": _taken,
    **dict.fromkeys(
        ("scatter", "scatter_add", "scatter_reduce"), _put_along((2, "index"), (3, "src"))
    ),
    **dict.fromkeys(("index_add", "index_copy", "index_fill"), _put_at),
    **dict.fromkeys(("cat", "concat", "concatenate"), _joined),
    "stack": _stacked,
    "diagonal": _diagonal,
    "one_hot": last_dims(0),
}

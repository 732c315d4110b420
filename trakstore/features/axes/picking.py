"""Functions that pick entries, put them somewhere, or lay tensors side by side."""

from __future__ import annotations

from collections.abc import Sequence
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor

from trakstore.features.axes.asked import Asked, Rule, aligned, dims_of
from trakstore.features.axes.marks import Axis, Mark, Unplaced

__all__ = ["RULES"]

FREE, LOST = Unplaced.FREE, Unplaced.LOST
_WHOLE = slice(None)


def _dim(asked: Asked, position: int, default: Any = None) -> int | None:
    """The dimension that a function works along, counted from the front."""
    found = dims_of(asked.argument(position, "dim", default), asked.first.ndim)
    return None if found is None else found[0]


def _along(position: int, default: Any = None) -> Rule:
    """A rule of functions that pick along ``dim`` and keep all dimensions in their places."""

    def rule(asked: Asked) -> Mark:
        mark = asked.of(asked.first)
        touched = isinstance(mark, Axis) and _dim(asked, position, default) in (None, mark.dim)
        return LOST if touched else mark

    return rule


def _without(position: int, default: Any = None) -> Rule:
    """A rule of functions that pick along ``dim``, which the result does not have."""

    def rule(asked: Asked) -> Mark:
        mark, dim = asked.of(asked.first), _dim(asked, position, default)
        if not isinstance(mark, Axis):
            return mark
        if dim is None or dim == mark.dim:
            return LOST
        return Axis(mark.dim - (dim < mark.dim), *mark[1:])

    return rule


def _gathered(asked: Asked) -> Mark:
    """Mark of ``gather`` and its like, which pick in each row by the same row of an index."""
    mark, dim, index = asked.of(asked.first), _dim(asked, 1), asked.argument(2, "index")
    if not isinstance(mark, Axis):
        own = asked.of(index)
        return own if mark is FREE and dim is not None and own != Axis(dim) else LOST
    same = dim not in (None, mark.dim) and index.shape[mark.dim] == asked.first.shape[mark.dim]
    return mark if same and asked.of(index) in (FREE, mark) else LOST


def _taken(asked: Asked) -> Mark:
    """Mark of ``take_along_dim``, whose dimension comes after the index."""
    index, dim = asked.argument(1, "indices"), asked.argument(2, "dim")
    return _gathered(asked.of_first(dim=dim, index=index))


def _scattered(asked: Asked) -> Mark:
    """Mark of ``scatter``: in each row, by the same row of an index."""
    return _put_along(asked, [asked.argument(2, "index"), asked.argument(3, "src")])


def _joined(asked: Asked) -> Mark:
    """Mark of ``cat``: samples are in one place of all parts, and not along the seam."""
    parts = asked.first
    result = asked.result
    dim = dims_of(asked.argument(1, "dim", asked.kwargs.get("axis", 0)), result.ndim)
    full = [part for part in parts if part.numel() or part.ndim == result.ndim]
    return _beside([(asked.of(part), part.shape) for part in full], None if dim is None else dim[0])


def _stacked(asked: Asked) -> Mark:
    """Mark of ``stack``, which makes a new dimension."""
    dim = dims_of(asked.argument(1, "dim", 0), asked.result.ndim)
    if dim is None:
        return LOST
    parts = [(asked.of(part), part.shape) for part in asked.first]
    mark = _beside(parts, -1)
    return Axis(mark.dim + (dim[0] <= mark.dim), *mark[1:]) if isinstance(mark, Axis) else mark


def _beside(parts: Sequence[tuple[Mark, Sequence[int]]], seam: int | None) -> Mark:
    marks = {mark for mark, _ in parts} - {FREE}
    if not marks:
        return FREE
    mark = marks.pop()
    if marks or not isinstance(mark, Axis):
        return LOST if marks else mark
    sizes = {shape[mark.dim] if mark.dim < len(shape) else None for _, shape in parts}
    return LOST if seam in (None, mark.dim) or len(sizes) > 1 else mark


def _diagonal(asked: Asked) -> Mark:
    """Mark of a diagonal, which becomes the last dimension."""
    mark, ndim = asked.of(asked.first), asked.first.ndim
    if not isinstance(mark, Axis):
        return mark
    dims = dims_of((asked.argument(2, "dim1", 0), asked.argument(3, "dim2", 1)), ndim)
    if dims is None or mark.dim in dims:
        return LOST
    return Axis(mark.dim - sum(dim < mark.dim for dim in dims), *mark[1:])


def _one_hot(asked: Asked) -> Mark:
    """Mark of a new last dimension."""
    return asked.of(asked.first)


def _item(asked: Asked) -> Mark:
    """Mark of ``x[index]``."""
    mark = asked.of(asked.first)
    parts = _parts(asked.args[1], asked.first.ndim)
    place = None if parts is None else _place(parts, mark, asked)
    own = [asked.of(part) for part in parts or [] if isinstance(part, Tensor)]
    if isinstance(mark, Axis):
        return LOST if place is None else Axis(place, *mark[1:])
    if mark is not FREE:
        return mark
    if all(one is FREE for one in own) and parts is not None:
        return FREE
    return _looked_up(parts, asked)


def _looked_up(parts: list[Any] | None, asked: Asked) -> Mark:
    """Mark of a table without samples that an index of theirs is looked up in, as an embedding does."""
    if parts is None or not isinstance(parts[0], Tensor) or parts[0].dtype == torch.bool:
        return LOST
    if any(isinstance(part, Tensor) for part in parts[1:]):
        return LOST
    return asked.of(parts[0])


def _put(asked: Asked) -> Mark:
    """Mark of a tensor after ``x[index] = value``."""
    first, index, value = asked.args
    mark, parts = asked.of(first), _parts(index, first.ndim)
    tensor = isinstance(value, Tensor)
    own = asked.of(value) if tensor else FREE
    if parts is None or mark is LOST or own is LOST:
        return LOST
    if {mark, own, *(asked.of(part) for part in parts if isinstance(part, Tensor))} == {FREE}:
        return FREE
    if len(parts) and isinstance(parts[0], Tensor) and parts[0].dtype == torch.bool:
        filled = not tensor or value.numel() == 1
        chosen = asked.of(parts[0])
        if not filled or len(parts) - parts[0].ndim > first.ndim or own is not FREE:
            return LOST
        shape = (*parts[0].shape, *[1] * (first.ndim - parts[0].ndim))
        return aligned([(mark, first.shape), (chosen, shape)], first.shape)
    if any(isinstance(part, Tensor | list) for part in parts):
        return LOST
    if isinstance(mark, Axis):
        place = _place(parts, mark, asked)
        if place is None:
            return LOST
        if own is FREE:
            return mark
        if not isinstance(own, Axis):
            return LOST
        kept = len([part for part in parts if not isinstance(part, int)])
        return mark if own == Axis(place - kept + value.ndim, *mark[1:]) else LOST
    if not isinstance(own, Axis):
        return own
    return _placed(parts, own, value.ndim, first.shape, value.shape)


def _placed(
    parts: list[Any], own: Axis, ndim: int, shape: Sequence[int], given: Sequence[int]
) -> Mark:
    """Mark of a tensor without samples that samples were written into by whole slices."""
    kept: list[int | None] = []
    source = 0
    for part in parts:
        if part is None:
            kept.append(None)
            continue
        if not isinstance(part, int):
            kept.append(source if part == _WHOLE else None)
        source += 1
    place = own.dim - ndim + len(kept)
    dim = kept[place] if 0 <= place < len(kept) else None
    if dim is None or shape[dim] != given[own.dim]:
        return LOST
    return Axis(dim, *own[1:])


def _parts(index: Any, ndim: int) -> list[Any] | None:
    """An index as one entry a dimension, or None for a new one; nothing where it cannot be told."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if any(
        not isinstance(part, int | slice | Tensor | list | EllipsisType | None)
        or isinstance(part, bool)
        for part in parts
    ):
        return None
    used = sum(_width(part) for part in parts)
    dots = [i for i, part in enumerate(parts) if part is Ellipsis]
    at = dots[0] if dots else len(parts)
    parts[at : at + 1] = [_WHOLE] * (ndim - used)
    return parts


def _width(part: Any) -> int:
    if part is None or part is Ellipsis:
        return 0
    if isinstance(part, Tensor) and part.dtype in (torch.bool, torch.uint8):
        return part.ndim
    return 1


def _place(parts: list[Any], mark: Mark, asked: Asked) -> int | None:
    """Dimension of the result in which the samples are; None where they were picked."""
    if not isinstance(mark, Axis):
        return None
    shape, source = asked.first.shape, 0
    picks = [i for i, part in enumerate(parts) if isinstance(part, Tensor | list)]
    adjacent = _adjacent(parts)
    width = max((getattr(parts[i], "ndim", 1) for i in picks), default=0)
    before, place, rows = 0, None, None
    for i, part in enumerate(parts):
        if picks and i == picks[0] and adjacent:
            before += width
        if part is None:
            before += 1
            continue
        own = source == mark.dim
        source += _width(part)
        if i in picks:
            if own or (
                mark.dim < source and _width(part) > 1 and mark.dim >= source - _width(part)
            ):
                rows = part
            continue
        if isinstance(part, int):
            if own:
                return None
            continue
        if own:
            if not _covers(part, shape[mark.dim]):
                return None
            place = before
        before += 1
    if rows is not None:
        return _in_order(rows, parts, picks, mark, asked, adjacent)
    chosen = [parts[i] for i in picks if isinstance(parts[i], Tensor)]
    if place is None or any(isinstance(asked.of(one), Axis) for one in chosen):
        return None  # picked by what samples say: they would be in two places
    return place if adjacent else place + width


def _adjacent(parts: list[Any]) -> bool:
    """True if the result has picked entries where the index has them, else they come first."""
    kept = [part for part in parts if not isinstance(part, int)]  # integers are taken out before
    picks = [i for i, part in enumerate(kept) if isinstance(part, Tensor | list)]
    return not picks or picks[-1] - picks[0] == len(picks) - 1


def _in_order(
    rows: Any, parts: list[Any], picks: list[int], mark: Axis, asked: Asked, adjacent: bool
) -> int | None:
    """Place of samples that were indexed by their own numbers, as in ``x[arange(batch), last]``."""
    every = [parts[i] for i in picks]
    if mark[1:] != (1, 1) or not isinstance(rows, Tensor) or rows.dtype == torch.bool:
        return None
    if any(not isinstance(one, Tensor) or one.ndim > 1 for one in every) or rows.ndim != 1:
        return None
    others = [asked.of(one) for one in every if one is not rows]
    if any(other not in (FREE, Axis(0)) for other in others):
        return None
    if not torch.equal(rows, torch.arange(asked.batch, device=rows.device, dtype=rows.dtype)):
        return None
    return len([p for p in parts[: picks[0]] if not isinstance(p, int)]) if adjacent else 0


def _covers(part: slice, size: int) -> bool:
    if part == _WHOLE:
        return True
    if not all(isinstance(one, int | None) for one in (part.start, part.stop, part.step)):
        return False
    return part.indices(size) == (0, size, 1)


def _written_rows(asked: Asked) -> Mark:
    """Mark of ``index_add`` and its like: rows are put where an index says, along one dimension."""
    return _put_along(asked, [asked.argument(3, "source")])


def _put_along(asked: Asked, others: list[Any]) -> Mark:
    """Mark of a tensor that others were put into along ``dim``, row by row in all other dimensions."""
    dim = _dim(asked, 1)
    tensors = [asked.first, *(one for one in others if isinstance(one, Tensor))]
    marks = {asked.of(tensor) for tensor in tensors} - {FREE}
    if not marks:
        return FREE
    mark = marks.pop()
    if marks or not isinstance(mark, Axis) or dim in (None, mark.dim):
        return LOST
    return mark if len({tensor.shape[mark.dim] for tensor in tensors}) == 1 else LOST


RULES: dict[str, Rule] = {
    "getitem": _item,
    "setitem": _put,
    **dict.fromkeys(("chunk", "split", "tensor_split", "split_with_sizes"), _along(2, 0)),
    **dict.fromkeys(("narrow", "index_select"), _along(1)),
    "select": _without(1),
    **dict.fromkeys(("unbind", "iter"), _without(1, 0)),
    "gather": _gathered,
    "take_along_dim": _taken,
    **dict.fromkeys(("scatter", "scatter_add", "scatter_reduce"), _scattered),
    **dict.fromkeys(("index_add", "index_copy", "index_fill"), _written_rows),
    **dict.fromkeys(("cat", "concat", "concatenate"), _joined),
    "stack": _stacked,
    "diagonal": _diagonal,
    "one_hot": _one_hot,
}

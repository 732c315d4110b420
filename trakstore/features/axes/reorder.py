"""Functions that keep all entries and give them another shape or order of dimensions."""

from __future__ import annotations

from torch import Tensor

from trakstore.features.axes.asked import Asked, Rule, aligned, dims_of, integers
from trakstore.features.axes.marks import Axis, Mark, Unplaced, relaid

__all__ = ["RULES"]

LOST = Unplaced.LOST


def _reshaped(asked: Asked) -> Mark:
    """Mark of a view or copy with the entries in the same order."""
    first, result = asked.first, asked.out
    mark = asked.of(first)
    if not isinstance(mark, Axis):
        return mark
    if not isinstance(result, Tensor) or result.numel() != first.numel():
        return LOST
    return relaid(mark, first.shape, result.shape, asked.batch)


def _moved(asked: Asked, order: list[int] | None) -> Mark:
    """Mark of a permutation, of which dimension ``i`` of the result is ``order[i]``."""
    mark = asked.of(asked.first)
    if not isinstance(mark, Axis):
        return mark
    if order is None or mark.dim not in order:
        return LOST
    return Axis(order.index(mark.dim), *mark[1:])


def _transpose(asked: Asked) -> Mark:
    ndim = asked.first.ndim
    names = ("dim0", "axis0"), ("dim1", "axis1")
    dims = [
        asked.argument(i + 1, one, asked.kwargs.get(other)) for i, (one, other) in enumerate(names)
    ]
    pair = dims_of(dims, ndim)
    if pair is None:
        return LOST
    order = list(range(ndim))
    order[pair[0]], order[pair[1]] = order[pair[1]], order[pair[0]]
    return _moved(asked, order)


def _permute(asked: Asked) -> Mark:
    dims = integers(asked.args[1:] or (asked.kwargs.get("dims", ()),))
    order = dims_of(dims, asked.first.ndim)
    return _moved(asked, None if order is None else list(order))


def _turned(asked: Asked) -> Mark:
    """Mark of ``t()`` and ``T``, which turn all dimensions round."""
    return _moved(asked, list(range(asked.first.ndim))[::-1])


def _turned_last(asked: Asked) -> Mark:
    """Mark of ``mT``, which exchanges the last two dimensions."""
    order = list(range(asked.first.ndim))
    return _moved(asked, [*order[:-2], *order[-2:][::-1]])


def _movedim(asked: Asked) -> Mark:
    ndim = asked.first.ndim
    source = dims_of(asked.argument(1, "source"), ndim)
    target = dims_of(asked.argument(2, "destination"), ndim)
    if source is None or target is None:
        return LOST
    places = dict(zip(target, source, strict=True))
    rest = iter(dim for dim in range(ndim) if dim not in source)
    return _moved(asked, [places[i] if i in places else next(rest) for i in range(ndim)])


def _expanded(asked: Asked) -> Mark:
    """Mark of a tensor that was repeated without a copy, with new dimensions in front."""
    first = asked.first
    return aligned([(asked.of(first), first.shape)], asked.result.shape)


def _repeated(asked: Asked) -> Mark:
    """Mark of a tensor laid beside itself: the whole batch again and again."""
    first, mark = asked.first, asked.of(asked.first)
    if not isinstance(mark, Axis):
        return mark
    shape = asked.result.shape
    dim = mark.dim + len(shape) - first.ndim
    times, rest = divmod(shape[dim], first.shape[mark.dim])
    return LOST if rest else Axis(dim, mark.before * times, mark.after)


def _repeat_interleave(asked: Asked) -> Mark:
    """Mark of a tensor whose entries are each repeated equally often."""
    first, mark = asked.first, asked.of(asked.first)
    times, dim = asked.argument(1, "repeats"), asked.argument(2, "dim")
    if not isinstance(mark, Axis) and isinstance(times, int):
        return mark
    place = None if dim is None else dims_of(dim, first.ndim)
    if not isinstance(mark, Axis) or not isinstance(times, int) or place is None:
        return LOST
    return Axis(mark.dim, mark.before, mark.after * times) if place[0] == mark.dim else mark


_RESHAPED = """
view reshape view_as reshape_as flatten unflatten ravel unsqueeze squeeze atleast_1d atleast_2d
atleast_3d unsafe_view
"""
RULES: dict[str, Rule] = {
    **dict.fromkeys(_RESHAPED.split(), _reshaped),
    **dict.fromkeys(("transpose", "swapaxes", "swapdims"), _transpose),
    **dict.fromkeys(("t", "T", "numpy_T"), _turned),
    **dict.fromkeys(("mT", "mH", "adjoint"), _turned_last),
    **dict.fromkeys(("movedim", "moveaxis"), _movedim),
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), _expanded),
    **dict.fromkeys(("repeat", "tile"), _repeated),
    "permute": _permute,
    "repeat_interleave": _repeat_interleave,
}

"""Functions that keep all entries and give them another shape or order of dimensions."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from trakstore.features.axes.marked_call import MarkedCall, Rule, aligned, dims_of, integers
from trakstore.features.axes.marks import LOST, Axis, Mark, reshaped

__all__ = ["RULES"]


def _reshaped(call: MarkedCall) -> Mark:
    """Mark of a view or copy with the entries in the same order."""
    first, result = call.first, call.out
    mark = call.mark(first)
    if not isinstance(mark, Axis):
        return mark
    if not isinstance(result, Tensor) or result.numel() != first.numel():
        return LOST
    return reshaped(mark, first.shape, result.shape, call.batch)


def _moved(call: MarkedCall, order: Sequence[int] | None) -> Mark:
    """Mark of a permutation whose dimension ``i`` is ``order[i]`` of the argument."""
    mark = call.mark(call.first)
    if not isinstance(mark, Axis):
        return mark
    if order is None or mark.dim not in order:
        return LOST  # no integers, or fewer than there are dimensions
    return Axis(order.index(mark.dim), *mark[1:])


def _transpose(call: MarkedCall) -> Mark:
    dims = [call.argument(i + 1, f"dim{i}", call.kwargs.get(f"axis{i}")) for i in (0, 1)]
    pair = dims_of(dims, call.first.ndim)
    if pair is None:
        return LOST
    order = list(range(call.first.ndim))
    order[pair[0]], order[pair[1]] = pair[1], pair[0]
    return _moved(call, order)


def _permute(call: MarkedCall) -> Mark:
    dims = integers(call.args[1:] or (call.kwargs.get("dims", ()),))
    return _moved(call, dims_of(dims, call.first.ndim))


def _turned(call: MarkedCall) -> Mark:
    """Mark of ``t()`` and ``T``, which turn all dimensions round."""
    return _moved(call, list(range(call.first.ndim))[::-1])


def _turned_last(call: MarkedCall) -> Mark:
    """Mark of ``mT``, which exchanges the last two dimensions."""
    order = list(range(call.first.ndim))
    return _moved(call, [*order[:-2], *order[-2:][::-1]])


def _movedim(call: MarkedCall) -> Mark:
    ndim = call.first.ndim
    source = dims_of(call.argument(1, "source"), ndim)
    target = dims_of(call.argument(2, "destination"), ndim)
    if source is None or target is None:
        return LOST
    # All dimensions that are not named keep their order in the places that are left.
    places = dict(zip(target, source, strict=True))
    rest = iter(dim for dim in range(ndim) if dim not in source)
    return _moved(call, [places[i] if i in places else next(rest) for i in range(ndim)])


def _expanded(call: MarkedCall) -> Mark:
    """Mark of a tensor that was repeated without a copy, with new dimensions in front."""
    first = call.first
    return aligned([(call.mark(first), first.shape)], call.result.shape)


def _repeated(call: MarkedCall) -> Mark:
    """Mark of a tensor laid beside itself: the whole batch again and again."""
    first, mark = call.first, call.mark(call.first)
    if not isinstance(mark, Axis):
        return mark
    # New dimensions are in front. Repeats of the whole batch lie before one another.
    shape = call.result.shape
    dim = mark.dim + len(shape) - first.ndim
    times, rest = divmod(shape[dim], first.shape[mark.dim])
    return LOST if rest else Axis(dim, mark.before * times, mark.after)


def _repeat_interleave(call: MarkedCall) -> Mark:
    """Mark of a tensor whose entries are each repeated equally often."""
    first, mark = call.first, call.mark(call.first)
    times, dim = call.argument(1, "repeats"), call.argument(2, "dim")
    if not isinstance(mark, Axis) and isinstance(times, int):
        return mark
    place = None if dim is None else dims_of(dim, first.ndim)
    if not isinstance(mark, Axis) or not isinstance(times, int) or place is None:
        return LOST  # a tensor of counts may give each sample another number of rows
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

"""Functions along some dimensions: sums, softmax, sorting, normalisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from trakstore.features.axes.marked_call import MarkedCall, Rule, aligned, dims_of, with_free_rest
from trakstore.features.axes.marks import FREE, LOST, Axis, Mark, removed

__all__ = ["RULES", "last_dims", "same_shape", "samples_first"]


def _dims(call: MarkedCall, position: int, default: Any = None) -> Any:
    """Return the ``dim`` of a call, under any of its names."""
    # NumPy's name is taken by many functions of torch, too.
    named = next((call.kwargs[name] for name in ("axis", "dims") if name in call.kwargs), default)
    return call.argument(position, "dim", named)


def _unless_touched(call: MarkedCall, dims: Any) -> Mark:
    """Mark of the first argument, unless a function may work along the dimension of the samples."""
    mark = call.mark(call.first)
    if not isinstance(mark, Axis):
        return mark
    touched = dims_of(dims, call.first.ndim)
    return LOST if touched is None or mark.dim in touched else mark


def same_shape(position: int, default: Any = None) -> Callable[[MarkedCall], Mark]:
    """Make a rule of functions along ``dim`` that keep all dimensions in their places."""
    return lambda call: _unless_touched(call, _dims(call, position, default))


def _reduced(call: MarkedCall) -> Mark:
    """Mark of a sum, mean, largest entry and the like, along some dimensions or all."""
    first, result = call.first, call.result
    if isinstance(call.argument(1, "other"), Tensor):  # maximum of two tensors
        return aligned([(call.mark(t), t.shape) for t in call.tensors], result.shape)
    mark = call.mark(first)
    if not isinstance(mark, Axis):
        return mark
    dims = dims_of(_dims(call, 1), first.ndim)
    without = removed(mark, dims or None)  # no dimensions at all stand for every one
    return mark if without is not LOST and result.ndim == first.ndim else without


def _norm(call: MarkedCall) -> Mark:
    """Mark of ``norm(x, p, dim)``, whose dimension comes after the order."""
    return _reduced(call.of_first(dim=_dims(call, 2)))


def _kth_value(call: MarkedCall) -> Mark:
    """Mark of ``kthvalue(x, k, dim)``, whose dimension comes after the place."""
    return _reduced(call.of_first(dim=_dims(call, 2, -1)))


def last_dims(count: int) -> Callable[[MarkedCall], Mark]:
    """Make a rule of functions of the last ``count`` dimensions, which keep the others."""

    def rule(call: MarkedCall) -> Mark:
        mark, ndim = call.mark(call.first), call.first.ndim
        return LOST if isinstance(mark, Axis) and mark.dim >= ndim - count else mark

    return rule


def _layer_norm(call: MarkedCall) -> Mark:
    """Mark of what normalises the last dimensions, as many as its shape has."""
    shape = call.argument(1, "normalized_shape", ())
    count = len(shape) if isinstance(shape, tuple | list) else call.first.ndim
    return last_dims(count)(call)


def _batch_norm(call: MarkedCall) -> Mark:
    """Mark of a normalisation by running statistics; those of the batch mix its samples."""
    if call.argument(5, "training", False) or call.argument(1, "running_mean") is None:
        return LOST
    return samples_first(call)


def samples_first(call: MarkedCall) -> Mark:
    """Mark of what works on each entry of the first dimension alone."""
    mark = call.mark(call.first)
    return LOST if isinstance(mark, Axis) and mark.dim else mark


def _pad(call: MarkedCall) -> Mark:
    """Mark of padding, whose sizes are pairs from the last dimension on."""
    sizes = call.argument(1, "pad", ())
    return last_dims(len(sizes) // 2)(call)


def _flipped(call: MarkedCall) -> Mark:
    dims = call.args[1:] or (call.kwargs.get("dims", ()),)
    flat = dims[0] if len(dims) == 1 and isinstance(dims[0], tuple | list) else dims
    return _unless_touched(call, flat)


def _unfolded(call: MarkedCall) -> Mark:
    """Mark of ``Tensor.unfold(dim, size, step)``, or of ``F.unfold``, which has samples first."""
    if len(call.args) > 1 and call.result.ndim == call.first.ndim + 1:
        return _unless_touched(call, call.args[1])
    return samples_first(call)


def _differences(call: MarkedCall) -> Mark:
    """Mark of differences of neighbours, also of those that are laid before and behind them."""
    marks = {call.mark(tensor) for tensor in call.tensors} - {FREE}
    return same_shape(2, -1)(call) if marks <= {call.mark(call.first)} else LOST


_REDUCED = """
sum mean prod amax amin max min argmax argmin logsumexp all any var std median nanmedian mode nansum
nanmean count_nonzero var_mean std_mean
"""
_POOLS_1D = "max_pool1d avg_pool1d adaptive_avg_pool1d adaptive_max_pool1d lp_pool1d"
_POOLS_2D = "max_pool2d avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d lp_pool2d"
_POOLS_3D = "max_pool3d avg_pool3d adaptive_avg_pool3d adaptive_max_pool3d"
_OF_FIRST: dict[str, Rule] = {
    **dict.fromkeys(("softmax", "log_softmax", "softmin"), same_shape(1)),
    **dict.fromkeys(("cumsum", "cumprod", "logcumsumexp", "cummax", "cummin"), same_shape(1)),
    **dict.fromkeys(("sort", "argsort", "glu"), same_shape(1, -1)),
    "flip": _flipped,
    "roll": same_shape(2),
    "normalize": same_shape(2, 1),
    "norm": _norm,
    "vector_norm": _norm,
    "topk": same_shape(2, -1),
    "kthvalue": _kth_value,
    "unfold": _unfolded,
    **dict.fromkeys(("layer_norm", "rms_norm"), _layer_norm),
    **dict.fromkeys(("group_norm", "instance_norm"), samples_first),
    "batch_norm": _batch_norm,
    "local_response_norm": samples_first,
    "pad": _pad,
    **dict.fromkeys(("tril", "triu"), last_dims(2)),
    **dict.fromkeys(_POOLS_1D.split(), last_dims(1)),
    **dict.fromkeys(_POOLS_2D.split(), last_dims(2)),
    **dict.fromkeys(("pixel_shuffle", "pixel_unshuffle", "channel_shuffle"), last_dims(3)),
    **dict.fromkeys(_POOLS_3D.split(), last_dims(3)),
    **dict.fromkeys(("interpolate", "upsample"), samples_first),
}
# What stands beside the first tensor (weights, a number of places) is the same for all samples.
RULES: dict[str, Rule] = {
    **{name: with_free_rest(rule) for name, rule in _OF_FIRST.items()},
    **dict.fromkeys(_REDUCED.split(), _reduced),
    "diff": _differences,
}

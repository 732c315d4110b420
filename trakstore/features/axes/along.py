"""Functions along some dimensions: sums, softmax, sorting, normalisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from trakstore.features.axes.asked import Asked, Rule, aligned, alone, dims_of
from trakstore.features.axes.marks import Axis, Mark, Unplaced

__all__ = ["RULES"]

LOST = Unplaced.LOST


def _given(asked: Asked, position: int, default: Any = None) -> Any:
    """The ``dim`` of a call, under any of its names."""
    named = next((asked.kwargs[name] for name in ("axis", "dims") if name in asked.kwargs), default)
    return asked.argument(position, "dim", named)


def _touched(asked: Asked, dims: Any) -> bool:
    """True unless it is certain that a function leaves the dimension of the samples alone."""
    mark, ndim = asked.of(asked.first), asked.first.ndim
    if not isinstance(mark, Axis):
        return False
    found = dims_of(dims, ndim)
    return found is None or mark.dim in found


def _same_shape(position: int, default: Any = None) -> Rule:
    """A rule of functions along ``dim`` that keep all dimensions in their places."""

    def rule(asked: Asked) -> Mark:
        dims = _given(asked, position, default)
        return LOST if _touched(asked, dims) else asked.of(asked.first)

    return rule


def _reduced(asked: Asked) -> Mark:
    """Mark of a sum, mean, largest entry and the like, along some dimensions or all."""
    first, result = asked.first, asked.result
    if isinstance(asked.argument(1, "other"), Tensor):  # maximum of two tensors
        return aligned([(asked.of(t), t.shape) for t in asked.tensors], result.shape)
    mark = asked.of(first)
    if not isinstance(mark, Axis):
        return mark
    dims = dims_of(_given(asked, 1), first.ndim)
    if dims is None or not dims or mark.dim in dims:
        return LOST
    if result.ndim == first.ndim:
        return mark
    return Axis(mark.dim - sum(dim < mark.dim for dim in dims), *mark[1:])


def _norm(asked: Asked) -> Mark:
    """Mark of ``norm(x, p, dim)``, whose dimension comes after the order."""
    return _reduced(asked.of_first(dim=_given(asked, 2)))


def _kth_value(asked: Asked) -> Mark:
    """Mark of ``kthvalue(x, k, dim)``, whose dimension comes after the place."""
    return _reduced(asked.of_first(dim=_given(asked, 2, -1)))


def _last(count: int) -> Callable[[Asked], Mark]:
    """A rule of functions of the last ``count`` dimensions, which keep the others as they are."""

    def rule(asked: Asked) -> Mark:
        mark, ndim = asked.of(asked.first), asked.first.ndim
        if isinstance(mark, Axis) and mark.dim >= ndim - count:
            return LOST
        return mark

    return rule


def _layer_norm(asked: Asked) -> Mark:
    """Mark of what normalises the last dimensions, as many as its shape has."""
    shape = asked.argument(1, "normalized_shape", ())
    count = len(shape) if isinstance(shape, tuple | list) else asked.first.ndim
    return _last(count)(asked)


def _batch_norm(asked: Asked) -> Mark:
    """Mark of a normalisation by running statistics; those of the batch mix its samples."""
    if asked.argument(5, "training", False) or asked.argument(1, "running_mean") is None:
        return LOST
    return _samples_first(asked)


def _samples_first(asked: Asked) -> Mark:
    """Mark of what works on each entry of the first dimension alone."""
    mark = asked.of(asked.first)
    return LOST if isinstance(mark, Axis) and mark.dim else mark


def _pad(asked: Asked) -> Mark:
    """Mark of padding, whose sizes are pairs from the last dimension on."""
    sizes = asked.argument(1, "pad", ())
    return _last(len(sizes) // 2)(asked)


def _flipped(asked: Asked) -> Mark:
    dims = asked.args[1:] or (asked.kwargs.get("dims", ()),)
    flat = dims[0] if len(dims) == 1 and isinstance(dims[0], tuple | list) else dims
    return LOST if _touched(asked, flat) else asked.of(asked.first)


def _unfolded(asked: Asked) -> Mark:
    """Mark of ``Tensor.unfold(dim, size, step)``, or of ``F.unfold``, which has samples first."""
    if len(asked.args) > 1 and asked.result.ndim == asked.first.ndim + 1:
        return LOST if _touched(asked, asked.args[1]) else asked.of(asked.first)
    return _samples_first(asked)


_REDUCED = """
sum mean prod amax amin max min argmax argmin logsumexp all any var std median nanmedian mode nansum
nanmean count_nonzero var_mean std_mean
"""
_POOLS_1D = "max_pool1d avg_pool1d adaptive_avg_pool1d adaptive_max_pool1d lp_pool1d"
_POOLS_2D = "max_pool2d avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d lp_pool2d"
RULES: dict[str, Rule] = {
    **dict.fromkeys(_REDUCED.split(), _reduced),
    **dict.fromkeys(("softmax", "log_softmax", "softmin"), _same_shape(1)),
    **dict.fromkeys(("cumsum", "cumprod", "logcumsumexp", "cummax", "cummin"), _same_shape(1)),
    **dict.fromkeys(("sort", "argsort", "glu"), _same_shape(1, -1)),
    "flip": _flipped,
    "roll": _same_shape(2),
    "normalize": _same_shape(2, 1),
    "norm": _norm,
    "vector_norm": _norm,
    "topk": _same_shape(2, -1),
    "kthvalue": _kth_value,
    "unfold": _unfolded,
    **dict.fromkeys(("layer_norm", "rms_norm"), alone(_layer_norm)),
    **dict.fromkeys(("group_norm", "instance_norm"), alone(_samples_first)),
    "batch_norm": alone(_batch_norm),
    "local_response_norm": _samples_first,
    "pad": _pad,
    **dict.fromkeys(("tril", "triu"), _last(2)),
    **dict.fromkeys(
        _POOLS_1D.split(),
        _last(1),
    ),
    **dict.fromkeys(
        _POOLS_2D.split(),
        _last(2),
    ),
    **dict.fromkeys(("pixel_shuffle", "pixel_unshuffle", "channel_shuffle"), _last(3)),
    **dict.fromkeys(
        ["max_pool3d", "avg_pool3d", "adaptive_avg_pool3d", "adaptive_max_pool3d"], _last(3)
    ),
    **dict.fromkeys(("interpolate", "upsample"), _samples_first),
}

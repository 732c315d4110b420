"""Functions entry by entry, losses among them: each entry of the result comes from one place."""

from __future__ import annotations

from torch import Tensor

from trakstore.features.axes.marked_call import MarkedCall, Rule, aligned, with_free_rest
from trakstore.features.axes.marks import FREE, LOST, Axis, Mark

__all__ = ["FROM_BEHIND", "LINED_UP", "RULES"]

_UNARY = """
abs absolute neg negative positive sign sgn exp exp2 expm1 log log2 log10 log1p sqrt rsqrt square
reciprocal sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh arcsin arccos arctan arctanh
sigmoid logit erf erfc erfinv lgamma digamma ceil floor round trunc frac nan_to_num relu relu6 elu celu
selu silu mish gelu hardtanh hardswish hardsigmoid hardshrink softshrink tanhshrink threshold softplus
softsign logsigmoid leaky_relu rrelu dropout alpha_dropout feature_alpha_dropout dropout1d dropout2d
dropout3d logical_not bitwise_not invert isnan isinf isfinite isneginf isposinf clone detach contiguous
float double half bfloat16 int long short char byte bool cpu cuda type requires_grad data
pos cfloat cdouble conj resolve_conj resolve_neg conj_physical angle real imag deg2rad
rad2deg sinc i0 pin_memory
"""
_AS_ANOTHER = "to type_as"  # may be given a tensor for its dtype and its device alone
_BROADCAST = """
add sub subtract mul multiply div divide true_divide floor_divide remainder fmod pow float_power
maximum minimum fmax fmin atan2 arctan2 hypot logaddexp logaddexp2 xlogy ldexp copysign heaviside
eq ne lt le gt ge equal_to greater greater_equal less less_equal not_equal logical_and logical_or
logical_xor bitwise_and bitwise_or bitwise_xor and or xor lshift rshift floordiv truediv mod
masked_fill clamp clip clamp_min clamp_max lerp addcmul addcdiv isclose polar complex nextafter where
"""
# Operators that Python also asks the other operand for (__radd__), or that change the first in place.
_OPERATORS = "add sub mul div truediv floordiv mod pow and or xor"
_MADE = """
zeros_like ones_like empty_like full_like rand_like randn_like randint_like new_zeros new_ones new_empty
new_full new_empty_strided zero fill
"""
_ENTRY_LOSSES = """
mse_loss l1_loss smooth_l1_loss huber_loss binary_cross_entropy binary_cross_entropy_with_logits
kl_div poisson_nll_loss gaussian_nll_loss soft_margin_loss
"""


def _broadcast(call: MarkedCall) -> Mark:
    """Mark of a function of several tensors that broadcasts them."""
    # What gives no tensor, as ``where`` of one argument, tells the places of some entries.
    if not isinstance(call.out, Tensor):
        return LOST
    return aligned([(call.mark(t), t.shape) for t in call.tensors], call.out.shape)


def _unary(call: MarkedCall) -> Mark:
    """Mark of a function of one tensor, entry by entry."""
    first, result = call.first, call.out
    same = isinstance(result, Tensor) and result.shape == first.shape
    return call.mark(first) if same else LOST


def _copied(call: MarkedCall) -> Mark:
    """Mark of a tensor that was filled with another."""
    source = call.argument(1, "src")
    if not isinstance(source, Tensor):
        return FREE
    return aligned([(call.mark(source), source.shape)], call.first.shape)


def _prelu(call: MarkedCall) -> Mark:
    """Mark of a function whose slopes are of channels, the second dimension."""
    return call.mark(call.first) if call.mark(call.argument(1, "weight")) is FREE else LOST


def _has_entries(call: MarkedCall) -> bool:
    """Tell whether a loss is of each entry: all other reductions mix the samples."""
    return call.kwargs.get("reduction") == "none" and isinstance(call.out, Tensor)


def _entry_loss(call: MarkedCall) -> Mark:
    """Mark of a loss of each entry of a prediction and its target."""
    return _broadcast(call) if _has_entries(call) else LOST


def _class_loss(call: MarkedCall) -> Mark:
    """Mark of a loss over classes, the second dimension, which goes away."""
    mark, target = call.mark(call.first), call.argument(1, "target")
    others = [t for t in call.tensors[1:] if t is not target]
    if not _has_entries(call) or call.first.ndim < 2:
        return LOST
    if any(call.mark(other) is not FREE for other in others):  # weights of classes
        return LOST
    of_target = call.mark(target)
    if not isinstance(mark, Axis):
        return LOST if of_target is not FREE else mark
    if mark.dim == 1:
        return LOST
    place = Axis(mark.dim - (mark.dim > 1), *mark[1:])
    # A target of as many dimensions has a probability for each class, else it has no classes.
    same = mark if target.ndim == call.first.ndim else place
    return place if of_target in (FREE, same) else LOST


RULES: dict[str, Rule] = {
    **dict.fromkeys(_MADE.split(), with_free_rest(lambda _: FREE)),
    **dict.fromkeys(_UNARY.split(), with_free_rest(_unary)),
    **dict.fromkeys(_AS_ANOTHER.split(), _unary),
    **dict.fromkeys(_BROADCAST.split(), _broadcast),
    **dict.fromkeys([f"r{name}" for name in _OPERATORS.split()], _broadcast),
    **dict.fromkeys([f"i{name}" for name in _OPERATORS.split()], _broadcast),
    "copy": _copied,
    "prelu": _prelu,
    **dict.fromkeys(_ENTRY_LOSSES.split(), _entry_loss),
    **dict.fromkeys(("cross_entropy", "nll_loss"), _class_loss),
}
# Functions of entries, which line up the dimensions of several tensors from the last one on.
# Of those with several tensors, those that leave all of them as they are.
LINED_UP = frozenset([*_BROADCAST.split(), *(f"r{name}" for name in _OPERATORS.split())])
FROM_BEHIND = frozenset([*_UNARY.split(), *_AS_ANOTHER.split(), *_BROADCAST.split()])
FROM_BEHIND |= {f"{turn}{name}" for turn in "ri" for name in _OPERATORS.split()}

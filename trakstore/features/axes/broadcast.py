"""Functions of single entries: every entry of the result is made of those at its place."""

from __future__ import annotations

from torch import Tensor

from trakstore.features.axes.asked import Asked, Rule, aligned
from trakstore.features.axes.marks import Mark, Unplaced

__all__ = ["FROM_BEHIND", "RULES"]

_UNARY = """
abs absolute neg negative positive sign sgn exp exp2 expm1 log log2 log10 log1p sqrt rsqrt square
reciprocal sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh arcsin arccos arctan arctanh
sigmoid logit erf erfc erfinv lgamma digamma ceil floor round trunc frac nan_to_num relu relu6 elu celu
selu silu mish gelu hardtanh hardswish hardsigmoid hardshrink softshrink tanhshrink threshold softplus
softsign logsigmoid leaky_relu rrelu dropout alpha_dropout feature_alpha_dropout dropout1d dropout2d
dropout3d logical_not bitwise_not invert isnan isinf isfinite isneginf isposinf clone detach contiguous
to float double half bfloat16 int long short char byte bool cpu cuda type requires_grad data
pos type_as cfloat cdouble conj resolve_conj resolve_neg conj_physical angle real imag deg2rad
rad2deg sinc i0 pin_memory
"""
_BROADCAST = """
add sub subtract mul multiply div divide true_divide floor_divide remainder fmod pow float_power
maximum minimum fmax fmin atan2 arctan2 hypot logaddexp logaddexp2 xlogy ldexp copysign heaviside
eq ne lt le gt ge equal_to greater greater_equal less less_equal not_equal logical_and logical_or
logical_xor bitwise_and bitwise_or bitwise_xor and or xor lshift rshift floordiv truediv mod
masked_fill clamp clip clamp_min clamp_max lerp addcmul addcdiv isclose polar complex nextafter
"""
# what comes from the same method of the other operand, or changes the first in place
_TURNED = "add sub mul div truediv floordiv mod pow and or xor matmul"


def _broadcast(asked: Asked) -> Mark:
    """Mark of a function of several tensors that broadcasts them."""
    result = asked.out
    if not isinstance(result, Tensor):
        return Unplaced.LOST
    return aligned([(asked.of(t), t.shape) for t in asked.tensors], result.shape)


def _unary(asked: Asked) -> Mark:
    """Mark of a function of one tensor, or of one that takes another for its dtype alone."""
    first, result = asked.first, asked.out
    if not isinstance(first, Tensor) or not isinstance(result, Tensor):
        return Unplaced.LOST
    return asked.of(first) if result.shape == first.shape else Unplaced.LOST


def _where(asked: Asked) -> Mark:
    """Mark of a choice between two tensors; of one argument it gives places, which are lost."""
    return _broadcast(asked) if isinstance(asked.out, Tensor) else Unplaced.LOST


def _copied(asked: Asked) -> Mark:
    """Mark of a tensor that was filled with another."""
    source = asked.argument(1, "src")
    if not isinstance(source, Tensor):
        return Unplaced.FREE
    return aligned([(asked.of(source), source.shape)], asked.first.shape)


def _prelu(asked: Asked) -> Mark:
    """Mark of a function whose slopes are of channels, the second dimension."""
    slopes = asked.argument(1, "weight")
    return asked.of(asked.first) if asked.of(slopes) is Unplaced.FREE else Unplaced.LOST


def _new(asked: Asked) -> Mark:  # noqa: ARG001
    """Mark of a constant whose shape alone is another tensor's."""
    return Unplaced.FREE


_MADE = """
zeros_like ones_like empty_like full_like rand_like randn_like randint_like new_zeros new_ones new_empty
new_full new_empty_strided zero fill
"""
RULES: dict[str, Rule] = {
    **dict.fromkeys(_MADE.split(), _new),
    **dict.fromkeys(_UNARY.split(), _unary),
    **dict.fromkeys(_BROADCAST.split(), _broadcast),
    "where": _where,
    "copy": _copied,
    "prelu": _prelu,
}
# functions of entries, which line up the dimensions of several tensors from the last one on
FROM_BEHIND = frozenset([*_UNARY.split(), *_BROADCAST.split(), "where"])
FROM_BEHIND |= {f"{turn}{name}" for turn in "ri" for name in _TURNED.split() if name != "matmul"}
RULES |= {f"r{name}": RULES[name] for name in _TURNED.split() if name in RULES}
RULES |= {f"i{name}": RULES[name] for name in _TURNED.split() if name in RULES}

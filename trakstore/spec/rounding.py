"""Rounding errors of features that a store's precision explains."""

from __future__ import annotations

from trakstore.spec.store_spec import StoreSpec

__all__ = ["is_rounded", "rounding_of"]

# Relative errors of stored rows from rounding, by their dtype, and by products in bfloat16. For numbers
# in 8 bits it is the error beyond half a step of each.
_NARROW = {"float32": 1e-3, "float16": 1e-2, "int8": 1e-3}
_AUTOCAST = 3e-2


def rounding_of(spec: StoreSpec) -> float:
    """Return the relative error of stored rows that their precision explains.

    For rows in 8 bits, it is the error beyond half a step of each number.
    """
    bits = 0.0 if spec.keep_bits is None else 2.0**-spec.keep_bits
    return max(_NARROW[spec.dtype], bits, _AUTOCAST if spec.autocast else 0.0)


def is_rounded(spec: StoreSpec) -> bool:
    """Tell whether stored rows have less precision than float32."""
    return spec.dtype != "float32" or spec.keep_bits is not None or spec.autocast is not None

"""The counter-based hash of :mod:`trakstore.features.projectors.hashing`, in registers.

Words are unsigned 32-bit numbers, whose products wrap around as the definition wants. Keys come as
signed ones of the same bits, so that every key has one type and no kernel is compiled twice.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["as_word", "hash1", "hash2", "mix", "signed"]


def signed(key: int) -> int:
    """Return a 32-bit word as the signed number of the same bits.

    Examples
    --------
    >>> signed(7), signed(2**32 - 1)
    (7, -1)
    """
    return key - 2**32 if key >= 2**31 else key


@triton.jit
def as_word(x):
    """A signed 32-bit number as the word of the same bits."""
    return x.to(tl.uint32, bitcast=True)


@triton.jit
def mix(x):
    """See :func:`trakstore.features.projectors.hashing.mix`."""
    x = x ^ (x >> 16)
    x = x * 0x85EBCA6B
    x = x ^ (x >> 13)
    x = x * 0xC2B2AE35
    return x ^ (x >> 16)


@triton.jit
def hash1(a, key0, key1):
    """A word for each ``a``."""
    return mix(mix(as_word(a) ^ as_word(key0)) + as_word(key1))


@triton.jit
def hash2(a, b, key0, key1):
    """A word for each pair, broadcast."""
    return mix(mix(as_word(a) ^ as_word(key0)) + mix(as_word(b) ^ as_word(key1)))

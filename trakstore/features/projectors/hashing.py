"""The counter-based hash that every random projection is drawn with.

Plain integer arithmetic on int64 tensors that hold 32-bit words, so that it gives the same numbers on
every device and in any language; ``storage/FORMAT.md`` has it in formulas. The finaliser is
MurmurHash3's (Appleby), which is public domain.
"""

from __future__ import annotations

import hashlib
import json

from torch import Tensor

from trakstore.spec import ProjectionSpec

__all__ = ["hash1", "hash2", "hash3", "keys", "mix"]

_WORD = 0xFFFFFFFF


def keys(spec: ProjectionSpec, name: str, shape: tuple[int, ...], stream: str) -> tuple[int, ...]:
    """Return three 32-bit keys of one random stream of one parameter.

    The first 12 bytes, little-endian, of the SHA-256 of the JSON array
    ``[kind, version, dim, seed, s, name, shape, stream]`` without spaces.
    """
    named = [spec.kind, spec.version, spec.dim, spec.seed, spec.s, name, list(shape), stream]
    digest = hashlib.sha256(json.dumps(named, separators=(",", ":")).encode()).digest()
    return tuple(int.from_bytes(digest[i : i + 4], "little") for i in (0, 4, 8))


def mix(x: Tensor) -> Tensor:
    """Return words of words: a bijection in which every input bit reaches every output bit."""
    # int64 holds the product of two 32-bit words but for its sign, and the bits above are cut away.
    x = x ^ (x >> 16)
    x = (x * 0x85EBCA6B) & _WORD
    x = x ^ (x >> 13)
    x = (x * 0xC2B2AE35) & _WORD
    return x ^ (x >> 16)


def hash1(a: Tensor, key: tuple[int, ...]) -> Tensor:
    """Return a word for each ``a``."""
    return mix((mix(a ^ key[0]) + key[1]) & _WORD)


def hash2(a: Tensor, b: Tensor, key: tuple[int, ...]) -> Tensor:
    """Return a word for each pair, broadcast."""
    return mix((mix(a ^ key[0]) + mix(b ^ key[1])) & _WORD)


def hash3(a: Tensor, b: Tensor, c: Tensor, key: tuple[int, ...]) -> Tensor:
    """Return a word for each triple, broadcast."""
    return mix((hash2(a, b, key) + mix(c ^ key[2])) & _WORD)

"""Inner loops on the CPU, compiled by numba; they hold no lock, so that threads share the samples.

Runs are added to rows of twice the length and folded at the end: without a wrap in the middle a loop
becomes vector instructions. No loop is parallel in itself, see :mod:`.threads`. None looks at bounds:
who calls them has checked rows and columns.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trakstore.machine_code import compiled

__all__ = [
    "add_direct",
    "add_entries",
    "add_gathered",
    "add_products",
    "add_runs",
    "draw_signs",
    "fold",
    "merge",
    "merge_rows",
]

_Float = NDArray[np.float32]
_Complex = NDArray[np.complex64]
_Int = NDArray[np.int64]


@compiled
def _mix(word: np.uint32) -> np.uint32:  # pragma: no cover
    """See :func:`.hashing.mix`; products of uint32 wrap around by themselves."""
    x = np.uint32(word ^ (word >> np.uint32(16)))
    x = np.uint32(x * np.uint32(0x85EBCA6B))
    x = np.uint32(x ^ (x >> np.uint32(13)))
    x = np.uint32(x * np.uint32(0xC2B2AE35))
    return np.uint32(x ^ (x >> np.uint32(16)))


@compiled
def add_entries(
    out: _Float, entries: _Float, offsets: _Int, signs: _Float
) -> None:  # pragma: no cover
    """Add single entries ``(batch, rows)``, as of a bias."""
    for b in range(entries.shape[0]):
        for r in range(entries.shape[1]):
            out[b, offsets[r]] += signs[r] * entries[b, r]


@compiled
def add_runs(wide: _Float, tile: _Float, offsets: _Int, signs2: _Float) -> None:  # pragma: no cover
    """Add rows of a tile ``(batch, rows, <= k)`` whose own signs are in them already."""
    batch, rows, rest = tile.shape
    for b in range(batch):
        for r in range(rows):
            start = offsets[r]
            o, t = wide[b, start : start + rest], tile[b, r]
            for j in range(rest):
                o[j] += signs2[j] * t[j]


@compiled
def add_direct(
    wide: _Float,
    left: _Float,
    right: _Float,
    index: _Int,
    signs: _Float,
    offsets: _Int,
    signs2: _Float,
) -> None:  # pragma: no cover
    """Add Σ_t left[t] ⊗ right[t] of one run, ``(batch, positions, rows)`` and ``(..., <= k)``."""
    batch, positions, rows = left.shape
    rest = right.shape[2]
    merged = np.empty(len(offsets), np.float32)
    signed = np.empty(rest, np.float32)
    for b in range(batch):
        for t in range(positions):
            merged[:] = 0
            for r in range(rows):
                merged[index[r]] += signs[r] * left[b, t, r]
            for j in range(rest):
                signed[j] = signs2[j] * right[b, t, j]
            for m in range(len(offsets)):
                value, start = merged[m], offsets[m]
                o = wide[b, start : start + rest]
                for j in range(rest):
                    o[j] += value * signed[j]


@compiled
def add_gathered(
    wide: _Float, rows: _Int, values: _Float, offsets: _Int, signs: _Float, signs2: _Float
) -> None:  # pragma: no cover
    """Add ``values (batch, n, rest)``, each a part of row ``rows (batch, n)`` of a weight.

    ``wide`` is ``(batch, 2k)``; tables of all rows are ``(rows, runs)``, ``signs2`` is ``(rest,)``.
    """
    batch, n, rest = values.shape
    k = wide.shape[1] // 2
    for b in range(batch):
        for i in range(n):
            r = rows[b, i]
            for run in range(offsets.shape[1]):
                first = run * k
                length = min(k, rest - first)
                start = offsets[r, run]
                o, t = wide[b, start : start + length], values[b, i, first : first + length]
                sign, s2 = signs[r, run], signs2[first : first + length]
                for j in range(length):
                    o[j] += sign * s2[j] * t[j]


@compiled
def merge(sketch: _Float, left: _Float, index: _Int, signs: _Float) -> None:  # pragma: no cover
    """Count sketch of the last dimension: ``(batch, positions, rows)`` to ``(..., columns)``."""
    batch, positions, rows = left.shape
    for b in range(batch):
        for t in range(positions):
            o, x = sketch[b, t], left[b, t]
            o[:] = 0
            for r in range(rows):
                o[index[r]] += signs[r] * x[r]


@compiled
def merge_rows(
    sketch: _Float, left: _Float, index: _Int, signs: _Float
) -> None:  # pragma: no cover
    """Count sketch of the middle dimension: ``(batch, rows, positions)`` to ``(., columns, .)``."""
    batch, rows, positions = left.shape
    for b in range(batch):
        sketch[b] = 0
        for r in range(rows):
            o, x, sign = sketch[b, index[r]], left[b, r], signs[r]
            for t in range(positions):
                o[t] += sign * x[t]


@compiled
def add_products(total: _Complex, a: _Complex, b: _Complex) -> None:  # pragma: no cover
    """Add Σ_t a[t]·b[t], ``(batch, positions, frequencies)``, to ``(batch, frequencies)``."""
    batch, positions, frequencies = a.shape
    for i in range(batch):
        o = total[i]
        for t in range(positions):
            x, y = a[i, t], b[i, t]
            for f in range(frequencies):
                o[f] += x[f] * y[f]


@compiled
def fold(out: _Float, wide: _Float, scale: float) -> None:  # pragma: no cover
    """Add ``wide (batch, 2k)``, wrapped around, to ``out (batch, k)``."""
    batch, k = out.shape
    s = np.float32(scale)
    for b in range(batch):
        for j in range(k):
            out[b, j] += s * (wide[b, j] + wide[b, j + k])


@compiled
def draw_signs(
    strip: _Float,
    start: int,
    rest: int,
    key0: int,
    key1: int,
    columns: NDArray[np.uint32],
    value: np.float32,
) -> None:  # pragma: no cover
    """Random signs times a value, ``(columns, entries)``; a hashed word is given for 32 columns.

    Entries are last, so that the loops over them become vector instructions.
    """
    count, entries = strip.shape
    pairs, words = np.empty(entries, np.uint32), np.empty(entries, np.uint32)
    for i in range(entries):
        row = _mix(np.uint32((start + i) // rest) ^ np.uint32(key0))
        position = _mix(np.uint32((start + i) % rest) ^ np.uint32(key1))
        pairs[i] = _mix(np.uint32(row + position))
    for w in range(len(columns)):
        column = columns[w]
        for i in range(entries):
            words[i] = _mix(np.uint32(pairs[i] + column))
        for bit in range(min(32, count - 32 * w)):
            o, mask = strip[32 * w + bit], np.uint32(1) << np.uint32(bit)
            for i in range(entries):
                o[i] = -value if words[i] & mask else value

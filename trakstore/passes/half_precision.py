"""Products with float16 rows, widened in registers, at the speed of memory.

NumPy widens float16 one number at a time, at about 1 GB/s a core, and then writes and reads the float32
rows: for one target this takes five times as long as reading the rows. The loops here are compiled once
in each process, and so are meant for many rows.
"""

from __future__ import annotations

import platform
from functools import cache
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic
from numpy.typing import NDArray

from trakstore.machine_code import compiled_for_all, has_x86_feature

F32 = NDArray[np.float32]
_F32 = np.float32


@cache
def has_instructions() -> bool:
    """Tell whether numba compiles for a processor that can widen float16, as these loops require."""
    chosen: Any = numba.core.config
    # All 64-bit ARM processors can, and those of Intel and AMD since 2013.
    if platform.machine().lower() in ("arm64", "aarch64"):
        return not chosen.DISABLE_JIT
    return has_x86_feature("f16c")


def _widening(_: Any, bits: Any) -> Any:  # pragma: no cover
    """Widen the bits of a uint16 as a float16: one instruction for several numbers."""

    def widen(_: Any, builder: Any, __: Any, values: Any) -> Any:
        return builder.fpext(builder.bitcast(values[0], ir.HalfType()), ir.FloatType())

    return numba.types.float32(bits), widen


wide: Any = intrinsic(_widening)


@compiled_for_all
def _widen(out: F32, rows: NDArray[np.uint16]) -> None:  # pragma: no cover
    for i in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            out[i, j] = wide(rows[i, j])


# Both keep four sums, since each addition to a single sum would wait for the one before.
@compiled_for_all
def one_target(out: F32, left: F32, rows: NDArray[np.uint16]) -> None:  # pragma: no cover
    """Multiply one target with rows, four rows at a time."""
    count, columns = rows.shape
    for first in range(0, count, 4):
        # The last four rows may overlap those before.
        i = min(first, max(0, count - 4))
        i1, i2, i3 = min(i + 1, count - 1), min(i + 2, count - 1), min(i + 3, count - 1)
        a, b, c, d = _F32(0), _F32(0), _F32(0), _F32(0)
        for j in range(columns):
            value = left[j]
            a += value * wide(rows[i, j])
            b += value * wide(rows[i1, j])
            c += value * wide(rows[i2, j])
            d += value * wide(rows[i3, j])
        out[i], out[i1], out[i2], out[i3] = a, b, c, d


@compiled_for_all
def four_targets(out: F32, lefts: F32, rows: NDArray[np.uint16]) -> None:  # pragma: no cover
    """Multiply four targets with rows, each of which is widened once."""
    for i in range(rows.shape[0]):
        a, b, c, d = _F32(0), _F32(0), _F32(0), _F32(0)
        for j in range(rows.shape[1]):
            value = wide(rows[i, j])
            a += value * lefts[0, j]
            b += value * lefts[1, j]
            c += value * lefts[2, j]
            d += value * lefts[3, j]
        out[0, i], out[1, i], out[2, i], out[3, i] = a, b, c, d


def widened(rows: NDArray[Any], out: F32 | None = None) -> F32:
    """Return rows (n, k) of any floats as float32, in ``out`` if given: to the bit as by NumPy."""
    out = np.empty(rows.shape, dtype=np.float32) if out is None else out
    if rows.dtype == np.float16 and has_instructions():
        _widen(out, _bits(rows))
    else:
        out[...] = rows
    return out


def few_products(lefts: F32, rows: NDArray[np.float16], out: F32) -> None:
    """Compute ``lefts @ rows.T`` in float32, shapes (m, k), (n, k) and (m, n), for few targets."""
    bits, whole = _bits(rows), len(lefts) // 4 * 4
    for at in range(0, whole, 4):
        four_targets(out[at : at + 4], lefts[at : at + 4], bits)
    for at in range(whole, len(lefts)):
        one_target(out[at], lefts[at], bits)


def _bits(rows: NDArray[np.float16]) -> NDArray[np.uint16]:
    # Rows must be contiguous in memory, or else the loops do not become vector instructions.
    return np.ascontiguousarray(rows).view(np.uint16)

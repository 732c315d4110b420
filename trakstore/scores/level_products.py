"""Products of levels of four bits with numbers of eight, as fast as memory gives the levels."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from trakstore.machine_code import compiled, has_x86_feature

_build: Any = cgutils
STEP_BYTES = 32  # bytes of levels that one instruction takes
_I8, _I16, _I32 = (ir.VectorType(ir.IntType(256 // n), n) for n in (32, 16, 8))


def level_products(
    out: NDArray[np.int32], levels: NDArray[np.uint8], target: NDArray[np.int8]
) -> None:
    """Multiply levels with a target.

    Parameters
    ----------
    out : ndarray of int32, shape (n,)
        Gets the products.
    levels : ndarray of uint8, shape (n, bytes)
        Two numbers of 0 to 15 a byte, in whole steps of 32 bytes: the lower halves first.
    target : ndarray of int8, shape (2 * bytes,)
        Numbers for the lower halves, then those for the upper ones, -127 to 127.
    """
    if has_x86_feature("avx2"):
        _in_registers(out, levels, target)
    else:
        _one_by_one(out, levels, *np.split(target.astype(np.int16), 2))


@compiled
def _one_by_one(out: Any, levels: Any, low: Any, high: Any) -> None:  # pragma: no cover
    for i in range(levels.shape[0]):
        total = np.int32(0)
        for j in range(levels.shape[1]):
            byte = np.int32(levels[i, j])
            total += (byte & np.int32(15)) * np.int32(low[j])
            total += (byte >> np.int32(4)) * np.int32(high[j])
        out[i] = total


def _multiplying(_: Any, levels: Any, target: Any, row: Any, count: Any) -> Any:  # pragma: no cover
    """Multiply the levels of a row of so many bytes, 64 of them in a few instructions."""

    def multiply(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        bytes_of, numbers = (
            context.make_array(kind)(context, builder, value).data
            for kind, value in zip(signature.args[:2], values[:2], strict=True)
        )
        count = values[3]
        start = builder.gep(bytes_of, [builder.mul(values[2], count)])
        four, fifteen, ones = (_filled(t, n) for t, n in ((_I8, 4), (_I8, 15), (_I16, 1)))
        module = builder.module
        pairs = _build.get_or_insert_function(
            module, ir.FunctionType(_I16, (_I8, _I8)), "llvm.x86.avx2.pmadd.ub.sw"
        )
        sums = _build.get_or_insert_function(
            module, ir.FunctionType(_I32, (_I16, _I16)), "llvm.x86.avx2.pmadd.wd"
        )
        total = _build.alloca_once_value(builder, ir.Constant(_I32, None))
        step = ir.Constant(count.type, STEP_BYTES)

        def at(place: Any, offset: Any) -> Any:
            pointer = builder.bitcast(builder.gep(place, [offset]), _I8.as_pointer())
            return builder.load(pointer, align=1)

        with _build.for_range_slice(builder, ir.Constant(count.type, 0), count, step) as (
            at_byte,
            _,
        ):
            both = at(start, at_byte)
            low = builder.call(pairs, [builder.and_(both, fifteen), at(numbers, at_byte)])
            upper = at(numbers, builder.add(count, at_byte))
            high = builder.call(pairs, [builder.lshr(both, four), upper])
            # Four products of at most 15 times 127 fit in 16 bits.
            more = builder.call(sums, [builder.add(low, high), ones])
            builder.store(builder.add(builder.load(total), more), total)
        result = builder.load(total)
        parts = [builder.extract_element(result, ir.Constant(ir.IntType(32), n)) for n in range(8)]
        summed = parts[0]
        for part in parts[1:]:
            summed = builder.add(summed, part)
        return summed

    return numba.types.int32(levels, target, row, count), multiply


def _filled(kind: Any, value: int) -> Any:  # pragma: no cover
    return ir.Constant(kind, [value] * kind.count)


_multiply: Any = intrinsic(_multiplying)


@compiled
def _in_registers(out: Any, levels: Any, target: Any) -> None:  # pragma: no cover
    for i in range(levels.shape[0]):
        out[i] = _multiply(levels, target, i, levels.shape[1])

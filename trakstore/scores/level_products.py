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
_types: Any = numba.types
STEP_BYTES = 32  # bytes of levels that one instruction takes
AT_ONCE = 4  # targets for which levels are taken from memory once
_I8, _I16, _I32 = (ir.VectorType(ir.IntType(256 // n), n) for n in (32, 16, 8))


def level_products(
    out: NDArray[np.int32], levels: NDArray[np.uint8], targets: NDArray[np.int8]
) -> None:
    """Multiply levels with targets.

    Parameters
    ----------
    out : ndarray of int32, shape (m, n)
        Gets the products.
    levels : ndarray of uint8, shape (n, bytes)
        Two numbers of 0 to 15 a byte, in whole steps of 32 bytes: the lower halves first.
    targets : ndarray of int8, shape (m, 2 * bytes)
        Numbers for the lower halves, then those for the upper ones, -127 to 127.
    """
    if not has_x86_feature("avx2"):
        _one_by_one(out, levels, *np.split(targets.astype(np.int16), 2, axis=1))
        return
    whole = len(targets) // AT_ONCE * AT_ONCE
    for first in range(0, whole, AT_ONCE):
        _four_in_registers(out[first : first + AT_ONCE], levels, targets[first : first + AT_ONCE])
    for at in range(whole, len(targets)):
        _in_registers(out[at], levels, targets[at])


@compiled
def _one_by_one(out: Any, levels: Any, low: Any, high: Any) -> None:  # pragma: no cover
    for at in range(len(low)):
        for i in range(levels.shape[0]):
            total = np.int32(0)
            for j in range(levels.shape[1]):
                byte = np.int32(levels[i, j])
                total += (byte & np.int32(15)) * np.int32(low[at, j])
                total += (byte >> np.int32(4)) * np.int32(high[at, j])
            out[at, i] = total


def _multiplying(targets: int) -> Any:
    """Return an intrinsic that multiplies the levels of a row with so many targets.

    It takes levels, targets, the number of the row and the bytes of one, and gives a tuple. Some 64
    levels are multiplied in a few instructions.
    """

    def multiply(
        _: Any, levels: Any, numbers: Any, row: Any, count: Any
    ) -> Any:  # pragma: no cover
        products = _types.UniTuple(_types.int32, targets)
        return products(levels, numbers, row, count), _generated(targets)

    return intrinsic(multiply)


def _generated(targets: int) -> Any:  # pragma: no cover
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        bytes_of, numbers = (
            context.make_array(kind)(context, builder, value).data
            for kind, value in zip(signature.args[:2], values[:2], strict=True)
        )
        count = values[3]
        start = builder.gep(bytes_of, [builder.mul(values[2], count)])
        four, fifteen, ones = (_filled(t, n) for t, n in ((_I8, 4), (_I8, 15), (_I16, 1)))
        pairs, sums = (
            _build.get_or_insert_function(
                builder.module, ir.FunctionType(*of), f"llvm.x86.avx2.{name}"
            )
            for name, of in (
                ("pmadd.ub.sw", (_I16, (_I8, _I8))),
                ("pmadd.wd", (_I32, (_I16, _I16))),
            )
        )
        totals = [
            _build.alloca_once_value(builder, ir.Constant(_I32, None)) for _ in range(targets)
        ]
        step = ir.Constant(count.type, STEP_BYTES)

        def at(place: Any, offset: Any) -> Any:
            pointer = builder.bitcast(builder.gep(place, [offset]), _I8.as_pointer())
            return builder.load(pointer, align=1)

        with _build.for_range_slice(builder, ir.Constant(count.type, 0), count, step) as (
            at_byte,
            _,
        ):
            both = at(start, at_byte)
            halves = builder.and_(both, fifteen), builder.lshr(both, four)
            place = at_byte
            for total in totals:
                low = builder.call(pairs, [halves[0], at(numbers, place)])
                place = builder.add(place, count)
                high = builder.call(pairs, [halves[1], at(numbers, place)])
                place = builder.add(place, count)
                # Four products of at most 15 times 127 fit in 16 bits.
                more = builder.call(sums, [builder.add(low, high), ones])
                builder.store(builder.add(builder.load(total), more), total)
        products = [_summed(builder, builder.load(total)) for total in totals]
        return context.make_tuple(builder, signature.return_type, products)

    return generate


def _summed(builder: Any, vector: Any) -> Any:  # pragma: no cover
    parts = [builder.extract_element(vector, ir.Constant(ir.IntType(32), n)) for n in range(8)]
    total = parts[0]
    for part in parts[1:]:
        total = builder.add(total, part)
    return total


def _filled(kind: Any, value: int) -> Any:  # pragma: no cover
    return ir.Constant(kind, [value] * kind.count)


_multiply, _multiply_four = _multiplying(1), _multiplying(AT_ONCE)


@compiled
def _in_registers(out: Any, levels: Any, target: Any) -> None:  # pragma: no cover
    for i in range(levels.shape[0]):
        out[i] = _multiply(levels, target, i, levels.shape[1])[0]


@compiled
def _four_in_registers(out: Any, levels: Any, targets: Any) -> None:  # pragma: no cover
    for i in range(levels.shape[0]):
        products = _multiply_four(levels, targets, i, levels.shape[1])
        for at in range(AT_ONCE):
            out[at, i] = products[at]

"""CRC-32C of many rows of bytes, by compiled loops: of each row, and of all rows after one another.

A register begins with 0 here, by which it is linear in the bytes: those of rows make that of all.
"""

from __future__ import annotations

from functools import cache
from typing import Any, TypeAlias

import numpy as np
from crc32c import crc32c
from llvmlite import ir
from numba.core import cgutils
from numba.core import types as numba_types
from numba.extending import intrinsic
from numpy.typing import NDArray

from trakstore.machine_code import compiled_for_all, has_x86_feature

U64: TypeAlias = NDArray[np.uint64]
_cgutils: Any = cgutils
_types: Any = numba_types
WORD = 8  # bytes that one instruction takes into a register
_LINE = 8  # words that come from memory together
_ALL_ONES = 2**32 - 1  # what a CRC-32C begins with, and is inverted by at its end


@cache
def sums_words() -> bool:
    """Tell whether numba compiles for a processor that takes a word into a register at once."""
    return has_x86_feature("crc32")


def _summing(_: Any, register: Any, word: Any) -> Any:  # pragma: no cover
    """Take a word into the register of a CRC-32C."""

    def add(_: Any, builder: Any, __: Any, values: Any) -> Any:
        word = ir.IntType(64)
        function = builder.module.declare_intrinsic(
            "llvm.x86.sse42.crc32.64.64", (), ir.FunctionType(word, [word, word])
        )
        return builder.call(function, values)

    return _types.uint64(register, word), add


def _fetching(_: Any, words: Any, row: Any, column: Any) -> Any:  # pragma: no cover
    """Have the processor fetch a word from memory while it computes."""

    def fetch(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind, number = signature.args[0], ir.IntType(32)
        array = context.make_array(kind)(context, builder, values[0])
        place = _cgutils.get_item_pointer(context, builder, kind, array, values[1:])
        place = builder.bitcast(place, ir.IntType(8).as_pointer())
        function = builder.module.declare_intrinsic(
            "llvm.prefetch",
            [place.type],
            ir.FunctionType(ir.VoidType(), [place.type, number, number, number]),
        )
        # To read it, soon, as data.
        builder.call(function, [place, number(0), number(3), number(1)])
        return context.get_dummy_value()

    return _types.void(words, row, column), fetch


_sum: Any = intrinsic(_summing)
_fetch: Any = intrinsic(_fetching)


@compiled_for_all
def sum_four(sums: U64, words: U64, i: int, low: int, high: int) -> None:  # pragma: no cover
    """Take words of four rows into their registers, which begin with 0 in front of the first word.

    Meanwhile those of the next four rows are fetched.
    """
    last = len(words) - 1
    i1, i2, i3 = min(i + 1, last), min(i + 2, last), min(i + 3, last)
    if low == 0:
        sums[i], sums[i1], sums[i2], sums[i3] = 0, 0, 0, 0
    # An instruction waits for the one before it in its row: so four rows have one under way each.
    a, b, c, d = sums[i], sums[i1], sums[i2], sums[i3]
    for j in range(low, high):
        if j % _LINE == 0:
            for ahead in range(4, 8):
                _fetch(words, min(i + ahead, last), j)
        a, b = _sum(a, words[i, j]), _sum(b, words[i1, j])
        c, d = _sum(c, words[i2, j]), _sum(d, words[i3, j])
    sums[i], sums[i1], sums[i2], sums[i3] = a, b, c, d


@cache
def over_zeros(size: int) -> U64:
    """Compute a register once ``size`` zeros follow: from each value of its four bytes, shape (4, 256).

    It is linear: that of a whole register is the xor of those of its bits.
    """
    zeros = bytes(size)
    over = [crc32c(zeros, 1 << bit ^ _ALL_ONES) ^ _ALL_ONES for bit in range(32)]
    values, table = np.arange(256), np.zeros((4, 256), np.uint64)
    for bit, register in enumerate(over):
        table[bit // 8] ^= np.where(values >> bit % 8 & 1, register, 0).astype(np.uint64)
    return table


@compiled_for_all
def joined(sums: U64, over: U64) -> np.uint64:  # pragma: no cover
    """Compute the CRC-32C of rows that follow one another from the registers of each, from 0 on."""
    ones, byte = np.uint64(_ALL_ONES), np.uint64(255)
    register = ones
    for own in sums:
        register = (
            own
            ^ over[0, register & byte]
            ^ over[1, register >> np.uint64(8) & byte]
            ^ over[2, register >> np.uint64(16) & byte]
            ^ over[3, register >> np.uint64(24) & byte]
        )
    return register ^ ones


@compiled_for_all
def each_joined(out: NDArray[np.uint32], words: U64, over: U64) -> None:  # pragma: no cover
    """Compute the CRC-32C of each row of words (n, w)."""
    sums = np.empty(len(words), np.uint64)
    for first in range(0, len(words), 4):
        sum_four(sums, words, first, 0, words.shape[1])
    for i in range(len(words)):
        out[i] = joined(sums[i : i + 1], over)

"""Codes of rows, one bit a direction, and products with them that count bits.

A row y is kept as the signs s of its entries after a random rotation, and the length |y|²/Σ|yⱼ|, which
makes length · ⟨x, s⟩ an estimate of ⟨x, y⟩ without bias for any x (Gao and Long: "RaBitQ", SIGMOD
2024, section 3). Its error is about 0.75 |x| |y| / √k, where the products of unrelated rows have
|x| |y| / √k. x is rounded to 16 levels, four bits whose planes meet the signs 64 at a time; that adds
next to nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numba
import numpy as np
from numba.extending import intrinsic
from numpy.typing import NDArray

from trakstore.errors import TrakStoreError
from trakstore.machine_code import compiled
from trakstore.passes.sent import Sent
from trakstore.planning import ranges
from trakstore.scores.top_directions import TopDirections
from trakstore.storage.tables.index_documents import code_bytes

F32 = NDArray[np.float32]
U64 = NDArray[np.uint64]
_PLANES = 4  # bits of an entry of a target
# Share of signs that 8 bits may change: of rows with a flat spectrum they change less than 1%.
_MOST_CHANGED = 0.02
# Rows whose products of 8 bits are made at once: they stay in a cache until their signs are taken.
_PIECE = 512


def _counting(_: Any, word: Any) -> Any:  # pragma: no cover
    """Count the bits of a uint64 that are 1: one instruction, for several words where there is one."""

    def count(_: Any, builder: Any, __: Any, values: Any) -> Any:
        return builder.ctpop(values[0])

    return numba.types.uint64(word), count


_ones: Any = intrinsic(_counting)


def need_compiler() -> None:
    """Raise a :class:`TrakStoreError` where numba is told not to compile: bits would not be counted."""
    chosen: Any = numba.core.config
    if chosen.DISABLE_JIT:
        raise TrakStoreError(
            "an index is built and asked by loops that numba compiles: unset NUMBA_DISABLE_JIT"
        )


@compiled
def _scan(
    out: F32,
    signs: U64,
    lengths: F32,
    planes: U64,
    low: np.float32,
    step: np.float32,
    total: np.float32,
) -> None:  # pragma: no cover
    words = signs.shape[1]
    for i in range(signs.shape[0]):
        ones, counted = np.uint64(0), np.uint64(0)
        for w in range(words):
            word = signs[i, w]
            ones += _ones(word)
            counted += _ones(word & planes[0, w])
            counted += _ones(word & planes[1, w]) << np.uint64(1)
            counted += _ones(word & planes[2, w]) << np.uint64(2)
            counted += _ones(word & planes[3, w]) << np.uint64(3)
        # Entries behind bits that are 1 count once, the others less once: twice the first, less all.
        positive = low * np.float32(ones) + step * np.float32(counted)
        out[i] += lengths[i] * (positive + positive - total)


# Of floats the largest would be found one after the other. Without their signs they are ordered as
# their bits are, of which vector instructions find it.
@compiled
def _largest(out: NDArray[np.int32], bits: NDArray[np.int32]) -> None:  # pragma: no cover
    """Find the bits of the largest size of an entry in each row of floats, given by their bits."""
    for i in range(bits.shape[0]):
        most = np.int32(0)
        for j in range(bits.shape[1]):
            most = max(most, bits[i, j] & np.int32(2**31 - 1))
        out[i] = most


@compiled
def _quantise(out: NDArray[np.int8], largest: F32, rows: F32) -> None:  # pragma: no cover
    half = np.float32(0.5)
    for i in range(rows.shape[0]):
        scale = np.float32(127) / largest[i] if largest[i] > 0 else np.float32(0)
        for j in range(rows.shape[1]):
            out[i, j] = np.int8(np.int32(np.floor(rows[i, j] * scale + half)))


@compiled
def _add_lengths(out: F32, turned: Any, scales: F32) -> None:  # pragma: no cover
    """Compute |y|²/Σ|yⱼ| of rows whose entries are to be multiplied by the scales."""
    for i in range(turned.shape[0]):
        squares, sizes = np.float32(0), np.float32(0)
        for j in range(turned.shape[1]):
            value = abs(np.float32(turned[i, j]) * scales[j])
            sizes += value
            squares += value * value
        out[i] = squares / sizes if sizes > 0 else np.float32(0)


@compiled
def _add_scaled(out: F32, turned: Any, scales: F32, units: F32) -> None:  # pragma: no cover
    """Add entries, each times the scale of its column and the unit of its row."""
    for i in range(turned.shape[0]):
        for j in range(turned.shape[1]):
            out[i, j] += np.float32(turned[i, j]) * scales[j] * units[i]


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Limit torch to one thread in this thread: others code the rows of other chunks."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True, eq=False)
class Turn(Sent):
    """A matrix that turns rows to the directions whose signs are kept, shape (k, k).

    Attributes
    ----------
    matrix : ndarray of int8 or float32, shape (k, k)
        With 8 bits, rows are rounded to as many: processors multiply such integers several times as
        fast as floats. Where few signs change by that, it does not show beside the error of one bit.
    scales : ndarray of float32, shape (k,)
        Factors of its columns.
    top : TopDirections, optional
        Directions of the rows that are not rounded, with what the exact matrix makes of them.
    """

    matrix: NDArray[Any]
    scales: F32
    top: TopDirections | None = None

    @classmethod
    def of(cls, matrix: F32, *, integers: bool) -> Turn:
        """Round a matrix to 8 bits, or take it as it is."""
        if not integers:
            return cls(np.ascontiguousarray(matrix, np.float32), np.ones(len(matrix), np.float32))
        scales = (np.abs(matrix).max(axis=0) / np.float32(127)).astype(np.float32)
        return cls(np.rint(matrix / scales).astype(np.int8), scales)

    def in_integers(self, some: F32) -> Turn:
        """Return the matrix in 8 bits; this one where that changes too many signs of some rows."""
        # Of rows of zeros, which samples without a gradient have, no sign changes: they tell nothing.
        some = some[some.any(axis=1)]
        if not len(some):
            return self
        # Where the kernel's inverse raises directions that are small in the rows, these are less than
        # the 127th part of the largest entries, and rounding leaves nothing of them.
        matrix = np.asarray(self.matrix, np.float32)
        rounded, signs = Turn.of(matrix, integers=True), self.codes(some)[0]
        if rounded.changes_few(signs, some):
            return rounded
        without = replace(rounded, top=TopDirections.of(some, matrix))
        return without if without.changes_few(signs, some) else self

    def changes_few(self, signs: NDArray[np.uint8], rows: F32) -> bool:
        """Tell whether nearly all signs of rows are the given ones."""
        changed = np.bitwise_count(self.codes(rows)[0] ^ signs).sum()
        return bool(changed <= _MOST_CHANGED * len(rows) * self.matrix.shape[1])

    def codes(self, rows: F32) -> tuple[NDArray[np.uint8], F32]:
        """Return the signs of finite rows (n, k), packed, the first lowest, and their lengths (n,)."""
        columns = self.matrix.shape[1]
        lengths = np.empty(len(rows), np.float32)
        signs = np.zeros((len(rows), code_bytes(columns)), np.uint8)
        for at, turned in self._turned(rows, lengths):
            packed = np.packbits(turned > 0, axis=1, bitorder="little")
            signs[at, : packed.shape[1]] = packed
        return signs, lengths

    def _turned(self, rows: F32, lengths: F32) -> Iterator[tuple[slice, NDArray[Any]]]:
        """Yield slices of rows with what has the signs of turned ones, until the next; fill lengths."""
        if self.matrix.dtype != np.int8:
            # All at once: how products of floats are rounded may depend on how many rows there are.
            turned = rows @ self.matrix
            _add_lengths(lengths, turned, self.scales)
            yield slice(None), turned
            return
        room = _Room(min(_PIECE, len(rows)), self.matrix.shape[1])
        for low, high in ranges(len(rows), _PIECE):
            at = slice(low, high)
            yield at, self._turned_piece(rows[at], lengths[at], room.first(high - low))

    def _turned_piece(self, rows: F32, lengths: F32, room: _Room) -> NDArray[Any]:
        if self.top is None:
            unit = self._multiply(rows, room)
            _add_lengths(lengths, room.product, self.scales)
            lengths *= unit
            return room.product
        self.top.split(rows, room.rest, room.turned)
        unit = self._multiply(room.rest, room)
        _add_scaled(room.turned, room.product, self.scales, unit)
        _add_lengths(lengths, room.turned, np.ones_like(self.scales))
        return room.turned

    def _multiply(self, rows: F32, room: _Room) -> F32:
        """Compute products of rows in 8 bits with the matrix; return what 1 stands for in each row."""
        import torch

        largest = np.empty(len(rows), np.float32)
        _largest(largest.view(np.int32), rows.view(np.int32))
        _quantise(room.whole, largest, rows)
        matrix, product = torch.from_numpy(self.matrix), torch.from_numpy(room.product)
        with one_torch_thread():
            torch._int_mm(torch.from_numpy(room.whole), matrix, out=product)
        return largest / np.float32(127)


class _Room:
    """Memory for a piece of rows on its way, which stays in a cache from piece to piece.

    Memory that is new for each piece would be filled with zeros by the system each time, which takes
    as long as all but the largest product.
    """

    def __init__(self, rows: int, columns: int) -> None:
        shape = rows, columns
        self.whole, self.product = np.empty(shape, np.int8), np.empty(shape, np.int32)
        self.rest, self.turned = np.empty(shape, np.float32), np.empty(shape, np.float32)

    def first(self, rows: int) -> _Room:
        """Return the room of the first rows."""
        part = copy(self)
        for name, array in vars(self).items():
            setattr(part, name, array[:rows])
        return part


def add_estimates(out: F32, target: F32, signs: U64, lengths: F32) -> None:
    """Add estimates of the products of a turned target (k,) with the rows of codes, shape (n,)."""
    low = float(target.min(initial=0))
    # Of a target of zeros all levels are 0, whatever the step is.
    step = (float(target.max(initial=0)) - low) / (2**_PLANES - 1) or 1.0
    levels = np.rint((target - low) / step).astype(np.uint8)
    planes = np.zeros((_PLANES, signs.shape[1]), np.uint64)
    for plane in range(_PLANES):
        bits = np.packbits((levels >> plane) & 1, bitorder="little")
        planes[plane].view(np.uint8)[: len(bits)] = bits
    total = low * len(target) + step * float(levels.sum())
    _scan(out, signs, lengths, planes, *map(np.float32, (low, step, total)))

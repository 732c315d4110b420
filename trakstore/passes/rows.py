"""Rows that are read in contiguous ranges: the input of every blocked operation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, ClassVar, Protocol, TypeAlias

import numpy as np
from dask.base import tokenize
from numpy.typing import NDArray

from trakstore.passes.sent import Sent
from trakstore.planning import ranges
from trakstore.storage.backends.ahead import AHEAD_BYTES
from trakstore.storage.stored import StoredColumn, read_together

# Positions of rows, in the order in which they are taken.
Taken: TypeAlias = range | NDArray[np.int64]

# Rows of a chunk of values that are made, not read.
MADE_ROWS = 2**16


class Rows(Protocol):
    """Rows on disk or in memory, read by contiguous ranges; small to pickle when on disk."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def chunk_rows(self) -> int: ...
    @property
    def token(self) -> str: ...
    def read(self, start: int, stop: int) -> NDArray[Any]: ...


@dataclass(frozen=True, eq=False)
class View(Sent):
    """A base for rows that are made from other rows and arrays."""

    # Saved scores record tokens, which contain names of classes: if a class is renamed, a stopped save
    # starts over.
    @cached_property
    def token(self) -> str:
        """Text that is equal for equal rows; a large array is hashed only when this is read."""
        parts = [getattr(self, field.name) for field in fields(self)]
        return str(tokenize(type(self).__name__, [getattr(part, "token", part) for part in parts]))

    def __dask_tokenize__(self) -> str:
        return self.token

    def below(self, start: int, stop: int) -> Iterable[Piece]:
        """Return the pieces of other rows that reading a range requires, in order."""
        parts = (getattr(self, field.name) for field in fields(self))
        return [(part, start, stop) for part in parts if isinstance(part, StoredColumn | View)]


# A piece: rows that are read for some other rows, from a start to a stop.
Piece: TypeAlias = tuple[Rows | View, int, int]


@dataclass(frozen=True, eq=False)
class ArrayRows(View):
    """An array in memory as :class:`Rows`.

    Examples
    --------
    >>> ArrayRows(np.arange(6), chunk_rows=4).read(2, 5)
    array([2, 3, 4])
    """

    array: NDArray[Any]
    chunk_rows: int = 4096

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    def read(self, start: int, stop: int) -> NDArray[Any]:
        return self.array[start:stop]


@dataclass(frozen=True, eq=False)
class _Derived(View):
    """Rows derived from those of ``base``."""

    base: Rows

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.base.dtype

    @property
    def chunk_rows(self) -> int:
        return self.base.chunk_rows


@dataclass(frozen=True, eq=False)
class TakenRows(_Derived):
    """The rows of ``base`` at ``index`` (a ``range`` or non-negative positions), in that order."""

    index: Taken

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.index), *self.base.shape[1:])

    def read(self, start: int, stop: int) -> NDArray[Any]:
        # A run of rows is read as one range, without an index.
        if isinstance(self.index, range) and self.index.step == 1 and start < stop:
            return self.base.read(self.index.start + start, self.index.start + stop)
        positions = np.asarray(self.index[start:stop], dtype=np.int64)
        out = np.empty((len(positions), *self.base.shape[1:]), dtype=self.base.dtype)
        for low, high, at in self._pieces(positions):
            out[at] = self.base.read(low, high)[positions[at] - low]
        return out

    def _pieces(self, positions: NDArray[np.int64]) -> Iterator[tuple[int, int, NDArray[np.int64]]]:
        """Cut the positions by chunk of the base: a range to read, and where its rows belong.

        So each chunk is read once, in whatever order the positions are.
        """
        order = np.argsort(positions, kind="stable")
        cuts = np.flatnonzero(np.diff(positions[order] // self.base.chunk_rows)) + 1
        for at in np.split(order, cuts):
            if len(at):
                yield int(positions[at[0]]), int(positions[at[-1]]) + 1, at

    def below(self, start: int, stop: int) -> list[Piece]:
        if start >= stop:
            return []
        if isinstance(self.index, range) and self.index.step == 1:
            return [(self.base, self.index.start + start, self.index.start + stop)]
        positions = np.asarray(self.index[start:stop], dtype=np.int64)
        return [(self.base, low, high) for low, high, _ in self._pieces(positions)]


@dataclass(frozen=True, eq=False)
class UnmaskedRows(_Derived):
    """The rows of ``base`` without those at the ascending positions ``masked``.

    Examples
    --------
    >>> UnmaskedRows(PositionRows(8), np.array([0, 3, 4])).read(1, 4)
    array([2, 5, 6])
    """

    masked: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.base.shape[0] - len(self.masked), *self.base.shape[1:])

    def read(self, start: int, stop: int) -> NDArray[Any]:
        if stop <= start:
            return self.base.read(0, 0)
        low, high = self._position(start), self._position(stop - 1) + 1
        rows, here = self.base.read(low, high), _within(self.masked, low, high)
        return np.delete(rows, here, axis=0) if len(here) else rows

    def below(self, start: int, stop: int) -> list[Piece]:
        if start >= stop:
            return []
        return [(self.base, self._position(start), self._position(stop - 1) + 1)]

    def _position(self, kept: int) -> int:
        """Return the position in the base of the kept row with this number.

        The i-th masked row has masked[i] − i kept rows before it. A kept row comes after all masked
        rows for which this is at most its own number.
        """
        before = self.masked - np.arange(len(self.masked))
        return kept + int(np.searchsorted(before, kept, side="right"))


@dataclass(frozen=True, eq=False)
class MeanRows(View):
    """The float64 mean of several columns of numbers of equal length."""

    columns: tuple[Rows, ...]
    dtype = np.dtype(np.float64)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.columns[0].shape

    @property
    def chunk_rows(self) -> int:
        return self.columns[0].chunk_rows

    @cached_property
    def token(self) -> str:
        return str(tokenize("mean", [column.token for column in self.columns]))

    def read(self, start: int, stop: int) -> NDArray[np.float64]:
        total = np.zeros(stop - start)
        for column in self.columns:
            total += column.read(start, stop)
        return total / len(self.columns)

    def below(self, start: int, stop: int) -> list[Piece]:
        return [(column, start, stop) for column in self.columns]


@dataclass(frozen=True, eq=False)
class RowByRow(_Derived):
    """A number, or a row, for each row of ``base``, made when it is read."""

    dtype: ClassVar[np.dtype[Any]] = np.dtype(np.float64)


@dataclass(frozen=True, eq=False)
class ZeroedRows(RowByRow):
    """Numbers of ``base``, with 0 at the positions in ``at``.

    Examples
    --------
    >>> ZeroedRows(ArrayRows(np.array([np.nan, 2.0, 3.0])), np.array([0])).read(0, 2)
    array([0., 2.])
    """

    at: NDArray[np.int64]

    def read(self, start: int, stop: int) -> NDArray[np.float64]:
        numbers = np.array(self.base.read(start, stop), dtype=np.float64)
        numbers[_within(self.at, start, stop)] = 0
        return numbers


@dataclass(frozen=True, eq=False)
class _Made(View):
    """One number a row, made when it is read."""

    rows: int
    chunk_rows = MADE_ROWS

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.rows,)


@dataclass(frozen=True, eq=False)
class PositionRows(_Made):
    """The positions 0, 1, ... rows - 1 themselves."""

    dtype = np.dtype(np.int64)

    def read(self, start: int, stop: int) -> NDArray[np.int64]:
        return np.arange(start, stop)


@dataclass(frozen=True, eq=False)
class KeptRows(_Made):
    """Weights that leave out some rows: 0 at the positions in ``without``, 1 elsewhere."""

    without: NDArray[np.int64]
    dtype = np.dtype(np.float32)

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        weights = np.ones(stop - start, dtype=np.float32)
        weights[_within(self.without, start, stop)] = 0
        return weights


def _within(positions: NDArray[np.int64], start: int, stop: int) -> NDArray[np.int64]:
    """Return the positions that are in a range, counted from its start."""
    return positions[(positions >= start) & (positions < stop)] - start


def take(rows: Rows, index: Taken) -> Rows:
    """Return the rows at ``index``, or ``rows`` themselves if that is all of them."""
    whole = isinstance(index, range) and index == range(rows.shape[0])
    return rows if whole else TakenRows(rows, index)


def scaled_integers(rows: Rows) -> tuple[Rows, Rows] | None:
    """Return 8-bit integers and the scale of each row, if rows are stored in this way; else None."""
    if isinstance(rows, StoredColumn):
        return None if rows.scale is None else (replace(rows, scale=None), rows.scale)
    if isinstance(rows, TakenRows | UnmaskedRows):
        parts = scaled_integers(rows.base)
        return parts and (replace(rows, base=parts[0]), replace(rows, base=parts[1]))
    return None


def taken_rows(rows: Rows, at: NDArray[np.int64]) -> NDArray[Any]:
    """Read the rows of a column at some positions, in the shape of these."""
    return TakenRows(rows, at.ravel()).read(0, at.size).reshape(at.shape)


def together(
    wanted: Iterable[tuple[Rows | None, int, int]], most: int = AHEAD_BYTES
) -> AbstractContextManager[None]:
    """Within, read rows of several columns ahead, without waiting for one after the other.

    Parameters
    ----------
    wanted : iterable of (Rows or None, start, stop)
        Pieces, in the order in which they will be read; those that are not stored are passed over.
    most : int
        Bytes of stored rows that are held at a time.
    """
    return read_together((one for rows in wanted for one in _stored(*rows)), most)


def is_near(rows: Rows) -> bool:
    """Tell whether none of the rows behind these is on another machine."""
    return next(_stored(rows, 0, min(1, rows.shape[0])), None) is None


def _stored(
    rows: Rows | View | None, start: int, stop: int
) -> Iterator[tuple[StoredColumn, int, int]]:
    """Yield the stored columns behind rows that are not on a local disk, with the ranges to read."""
    if isinstance(rows, StoredColumn):
        if not rows.location.near:
            yield rows, start, stop
    elif isinstance(rows, View) and _is_far(rows):
        for piece in rows.below(start, stop):
            yield from _stored(*piece)


def _is_far(rows: Rows | View) -> bool:
    """Tell whether chosen rows may be on another machine: else nobody needs to look for pieces."""
    whole = _below(rows)
    return not isinstance(whole, StoredColumn) or not whole.location.near


def _below(rows: Rows | View) -> Rows | View:
    """Return the rows that chosen or unmasked ones are some of."""
    while isinstance(rows, TakenRows | UnmaskedRows):
        rows = rows.base
    return rows


def count_below(rows: Rows) -> int:
    """Return the number of rows that chosen or unmasked ones are some of."""
    below: Any = _below(rows)
    return int(below.shape[0])


def whole_column(rows: Rows) -> NDArray[Any]:
    """Read all of a column of numbers, ids or labels; not meant for features."""
    pieces = ranges(rows.shape[0], max(1, rows.chunk_rows))
    with together([(rows, 0, rows.shape[0])]):
        return np.concatenate([rows.read(low, high) for low, high in pieces])


def column_pieces(rows: Rows, count: int) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield a column's first row and its values, about ``count`` at a time and in whole chunks."""
    step = max(1, rows.chunk_rows) * max(1, count // max(1, rows.chunk_rows))
    for low, high in ranges(rows.shape[0], step):
        with together([(rows, low, high)]):
            yield low, rows.read(low, high)

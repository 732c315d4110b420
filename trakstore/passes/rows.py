"""Rows that are read by contiguous ranges: what every blocked operation works on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, Protocol, TypeAlias

import numpy as np
from dask.base import tokenize
from numpy.typing import NDArray

from trakstore.passes.sent import Sent
from trakstore.planning import ranges
from trakstore.storage.backends.ahead import AHEAD_BYTES
from trakstore.storage.stored import StoredColumn, read_together

__all__ = [
    "ArrayRows",
    "KeptRows",
    "MeanRows",
    "PositionRows",
    "RowByRow",
    "Rows",
    "Taken",
    "TakenRows",
    "UnmaskedRows",
    "View",
    "ZeroedRows",
    "take",
    "together",
    "whole_column",
]

Taken: TypeAlias = range | NDArray[np.int64]

MADE_ROWS = 2**16  # rows of a chunk of what is made, not read


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
    """What the rows of this file share: a token of all that they are made of, taken when asked."""

    @cached_property
    def token(self) -> str:
        parts = [getattr(self, field.name) for field in fields(self)]
        return str(tokenize(type(self).__name__, [getattr(part, "token", part) for part in parts]))

    def __dask_tokenize__(self) -> str:
        return self.token


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
class _Chosen(View):
    """Some rows of ``base``."""

    base: Rows

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.base.dtype

    @property
    def chunk_rows(self) -> int:
        return self.base.chunk_rows


@dataclass(frozen=True, eq=False)
class TakenRows(_Chosen):
    """The rows of ``base`` at ``index`` (a ``range`` or non-negative positions), in that order."""

    index: Taken

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.index), *self.base.shape[1:])

    def read(self, start: int, stop: int) -> NDArray[Any]:
        if isinstance(self.index, range) and self.index.step == 1 and start < stop:
            return self.base.read(self.index.start + start, self.index.start + stop)
        wanted = np.asarray(self.index[start:stop], dtype=np.int64)
        out = np.empty((len(wanted), *self.base.shape[1:]), dtype=self.base.dtype)
        for low, high, at in self._pieces(wanted):
            out[at] = self.base.read(low, high)[wanted[at] - low]
        return out

    def _pieces(self, wanted: NDArray[np.int64]) -> Iterator[tuple[int, int, NDArray[np.int64]]]:
        """For each chunk of the base, which rows are read, and the places of those that are wanted."""
        order = np.argsort(wanted, kind="stable")
        cuts = np.flatnonzero(np.diff(wanted[order] // self.base.chunk_rows)) + 1
        for at in np.split(order, cuts):
            if len(at):
                yield int(wanted[at[0]]), int(wanted[at[-1]]) + 1, at

    def below(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The ranges of rows of the base that are read for these rows, in that order."""
        if isinstance(self.index, range) and self.index.step == 1:
            return [(self.index.start + start, self.index.start + stop)]
        wanted = np.asarray(self.index[start:stop], dtype=np.int64)
        return [(low, high) for low, high, _ in self._pieces(wanted)]


def together(
    wanted: Iterable[tuple[Rows | None, int, int]], most: int = AHEAD_BYTES
) -> AbstractContextManager[None]:
    """Within, rows of several columns are read without waiting for one after the other.

    Parameters
    ----------
    wanted : iterable of (Rows or None, start, stop)
        In the order in which they will be read; what is not stored is passed over.
    most : int
        Bytes of stored rows that are held at a time.
    """
    return read_together((one for rows in wanted for one in _stored(*rows)), most)


def _stored(rows: Rows | None, start: int, stop: int) -> Iterator[tuple[StoredColumn, int, int]]:
    """The stored columns below that are not on a local disk, and which of their rows are read."""
    if isinstance(rows, StoredColumn):
        if not rows.location.near:
            yield rows, start, stop
    elif isinstance(rows, MeanRows):
        for column in rows.columns:
            yield from _stored(column, start, stop)
    elif isinstance(rows, RowByRow):
        for base in (getattr(rows, field.name) for field in fields(rows)):
            if isinstance(base, StoredColumn | View):
                yield from _stored(base, start, stop)
    elif isinstance(rows, TakenRows | UnmaskedRows) and start < stop and _is_far(rows):
        for piece in rows.below(start, stop):
            yield from _stored(rows.base, *piece)


def _is_far(rows: Rows) -> bool:
    while isinstance(rows, _Chosen):
        rows = rows.base
    return not isinstance(rows, StoredColumn) or not rows.location.near


def take(rows: Rows, index: Taken) -> Rows:
    """The rows at ``index``: themselves where that is all of them."""
    whole = isinstance(index, range) and index == range(rows.shape[0])
    return rows if whole else TakenRows(rows, index)


@dataclass(frozen=True, eq=False)
class UnmaskedRows(_Chosen):
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
        ((low, high),) = self.below(start, stop)
        here = self.masked[np.searchsorted(self.masked, low) : np.searchsorted(self.masked, high)]
        rows = self.base.read(low, high)
        return np.delete(rows, here - low, axis=0) if len(here) else rows

    def below(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The one range of rows of the base that is read for these rows, of which there are some."""
        return [(self._position(start), self._position(stop - 1) + 1)]

    def _position(self, kept: int) -> int:
        """Position in the base of the kept row with this number."""
        before = self.masked - np.arange(len(self.masked))  # kept rows in front of each masked one
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


@dataclass(frozen=True, eq=False)
class RowByRow(View):
    """A number, or a row, for each row of ``base``, made when it is read."""

    base: Rows
    dtype: ClassVar[np.dtype[Any]] = np.dtype(np.float64)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def chunk_rows(self) -> int:
        return self.base.chunk_rows


@dataclass(frozen=True, eq=False)
class _Made(View):
    """One number a row, made when it is read."""

    rows: int
    chunk_rows = MADE_ROWS

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.rows,)


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
        found = np.array(self.base.read(start, stop), dtype=np.float64)
        found[self.at[(self.at >= start) & (self.at < stop)] - start] = 0
        return found


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
        kept = np.ones(stop - start, dtype=np.float32)
        kept[self.without[(self.without >= start) & (self.without < stop)] - start] = 0
        return kept


def whole_column(rows: Rows) -> NDArray[Any]:
    """All of a column of numbers, ids or labels; not meant for features."""
    pieces = ranges(rows.shape[0], max(1, rows.chunk_rows))
    with together([(rows, 0, rows.shape[0])]):
        return np.concatenate([rows.read(low, high) for low, high in pieces])

"""The running lists of a top-k: entries that beat a target's k-th, sorted in now and then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import NumericsError
from trakstore.planning import ranges

__all__ = [
    "NOWHERE",
    "STATE_BYTES",
    "WAITING_BYTES",
    "Found",
    "Order",
    "Running",
    "check_finite",
    "first_of",
    "keys",
    "merge",
    "select_bytes",
]

Order: TypeAlias = Literal["largest", "smallest", "magnitude"]

SELECT_VALUES = 2**17  # values of a tile that are looked at together,
SELECT_BYTES = 64 * SELECT_VALUES  # and the most that this takes (all of them tied)
NOWHERE = np.iinfo(np.int64).max  # position of a place in the list that is still free
STATE_BYTES = 4 + 4 + 8
WAITING_BYTES = 3 * (STATE_BYTES + 8)  # of entries that wait, at most three for each that is kept


@dataclass(frozen=True, eq=False)
class Found:
    """The running lists: key (larger comes first), score and position, shape (targets, k) each."""

    key: NDArray[Any]
    score: NDArray[Any]
    position: NDArray[np.int64]


class Running:
    """The lists of a window while tiles stream by, in blocks of rows that fit a cache."""

    def __init__(self, rows: int, k: int, dtype: np.dtype[Any], columns: int) -> None:
        pieces = ranges(rows, max(1, SELECT_VALUES // columns))
        self._lists = [(low, high, _Lists(high - low, k, dtype)) for low, high in pieces]

    def offer(
        self, tile: NDArray[Any], target: int, positions: NDArray[np.int64], order: Order
    ) -> None:
        """Scores of targets from ``target`` on with the train rows at ``positions``, ascending."""
        check_finite(tile, target, positions)
        for low, high, lists in self._lists:
            lists.offer(tile[low:high], positions, order)

    def found(self) -> Found:
        parts = [lists.settle() for _, _, lists in self._lists]
        names = ("key", "score", "position")
        return Found(*(np.concatenate([getattr(p, name) for p in parts]) for name in names))


class _Lists:
    """Lists of a few targets, and entries that beat a k-th but are not sorted in yet.

    They are sorted in only once there are as many as in the lists: about log(n / k) times in all.
    """

    def __init__(self, rows: int, k: int, dtype: np.dtype[Any]) -> None:
        key, score = np.full((rows, k), -np.inf, dtype), np.zeros((rows, k), dtype)
        self._best = Found(key, score, np.full((rows, k), NOWHERE))
        self._waiting: list[tuple[NDArray[Any], ...]] = []
        self._count = 0

    def offer(self, tile: NDArray[Any], positions: NDArray[np.int64], order: Order) -> None:
        rows, k = self._best.key.shape
        key = keys(tile, order)
        better = key > self._best.key[:, -1:]  # an equal score further on loses its tie
        if k < tile.shape[1] and np.count_nonzero(better) > 2 * k * rows:
            better &= key >= np.partition(key, -k, axis=1)[:, -k, None]
        at, column = np.divmod(np.flatnonzero(better), tile.shape[1])
        self._waiting.append((at, key[at, column], tile[at, column], positions[column]))
        self._count += len(at)
        if self._count >= k * rows:
            self.settle()

    def settle(self) -> Found:
        """Sort in what waits. Entries are in order of position, which a stable sort keeps."""
        if self._count:
            rows, k = self._best.key.shape
            best = self._best
            listed = (np.repeat(np.arange(rows), k), best.key, best.score, best.position)
            columns = zip(listed, *self._waiting, strict=True)
            row, key, score, position = (
                np.concatenate([part.ravel() for part in parts]) for parts in columns
            )
            sizes = np.bincount(row)
            ranked = np.lexsort((-key, row))
            kept = ranked[(np.cumsum(sizes) - sizes)[:, None] + np.arange(k)]
            self._best = Found(key[kept], score[kept], position[kept])
            self._waiting, self._count = [], 0
        return self._best


def keys(tile: NDArray[Any], order: Order) -> NDArray[Any]:
    """What is larger for scores that come first."""
    if order == "largest":
        return tile
    turned: NDArray[Any] = np.negative(tile) if order == "smallest" else np.abs(tile)
    return turned


def merge(left: Found, right: Found) -> Found:
    k = left.key.shape[1]
    key = np.concatenate([left.key, right.key], axis=1)
    score = np.concatenate([left.score, right.score], axis=1)
    position = np.concatenate([left.position, right.position], axis=1)
    return first_of(Found(key, score, position), k)


def first_of(found: Found, k: int) -> Found:
    """The first k entries of each list, in order; of equal ones the first position."""
    first = np.lexsort((found.position, -found.key), axis=1)[:, :k]
    parts = (found.key, found.score, found.position)
    return Found(*(np.take_along_axis(part, first, axis=1) for part in parts))


def select_bytes(k: int, columns: int) -> int:
    """Looking at some rows of a tile, and sorting in what they had waiting."""
    return SELECT_BYTES + 4 * k * max(1, SELECT_VALUES // columns) * (STATE_BYTES + 32)


def check_finite(tile: NDArray[Any], target: int, positions: NDArray[np.int64]) -> None:
    """Raise a :class:`NumericsError` that names the first score that is not finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(np.add.reduce(tile, axis=None)):
            return
    bad = np.argwhere(~np.isfinite(tile))
    if len(bad):  # else only the sum was too large
        row, column = bad[0]
        raise NumericsError(
            f"the score of target {target + row} with train row {positions[column]} is "
            f"{tile[row, column]}: look for non-finite features or out_to_loss there"
        )

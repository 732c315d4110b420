"""Running top-k lists: entries that beat a target's k-th are collected, and sorted in now and then."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import NumericsError
from trakstore.planning import ranges

Order: TypeAlias = Literal["largest", "smallest", "magnitude"]

# Values of a tile that are examined together, and the most bytes that this takes, if all are tied.
SELECT_VALUES = 2**17
SELECT_BYTES = 64 * SELECT_VALUES
# The position of a place in a list that is still free.
NOWHERE = np.iinfo(np.int64).max
# Bytes of an entry: key, score and position.
STATE_BYTES = 4 + 4 + 8
# Bytes of waiting entries for each kept entry: at most three wait, each with its row.
WAITING_BYTES = 3 * (STATE_BYTES + 8)


@dataclass(frozen=True, eq=False)
class Lists:
    """Lists of some targets, shape (targets, k) each: key (larger is first), score and position."""

    key: NDArray[Any]
    score: NDArray[Any]
    position: NDArray[np.int64]

    @classmethod
    def joined(cls, parts: Sequence[Lists], axis: int = 0) -> Lists:
        """Stack the lists of several targets or, along axis 1, join several lists of each target."""
        columns = zip(*((one.key, one.score, one.position) for one in parts), strict=True)
        return cls(*(np.concatenate(column, axis) for column in columns))


class Running:
    """Lists of a window while tiles stream by, in blocks of targets that fit a cache."""

    def __init__(self, rows: int, k: int, dtype: np.dtype[Any], columns: int) -> None:
        pieces = ranges(rows, max(1, SELECT_VALUES // columns))
        self._blocks = [(low, high, _Block(high - low, k, dtype)) for low, high in pieces]

    def offer(
        self, tile: NDArray[Any], target: int, positions: NDArray[np.int64], order: Order
    ) -> None:
        """Update lists from ``target`` on with scores of train rows at ascending ``positions``."""
        check_finite(tile, target, positions)
        for low, high, block in self._blocks:
            block.offer(tile[low:high], positions, order)

    def lists(self) -> Lists:
        """Return the lists as they are now."""
        return Lists.joined([block.sort_in() for _, _, block in self._blocks])


class _Block:
    """Lists of a few targets, and entries that beat a k-th but are not sorted in yet.

    They are sorted in once they are as many as the lists' entries: about log(n / k) times in all.
    """

    def __init__(self, rows: int, k: int, dtype: np.dtype[Any]) -> None:
        key, score = np.full((rows, k), -np.inf, dtype), np.zeros((rows, k), dtype)
        self._best = Lists(key, score, np.full((rows, k), NOWHERE))
        self._waiting: list[tuple[NDArray[Any], ...]] = []
        self._count = 0

    def offer(self, tile: NDArray[Any], positions: NDArray[np.int64], order: Order) -> None:
        rows, k = self._best.key.shape
        key = keys(tile, order)
        # Positions ascend from tile to tile, so that a score equal to the k-th loses the tie.
        better = key > self._best.key[:, -1:]
        # In the first tiles nearly all scores beat the k-th, but only the first k of a tile can enter
        # the list. All that tie with the k-th of these stay, since the sort decides between them.
        if k < tile.shape[1] and np.count_nonzero(better) > 2 * k * rows:
            better &= key >= np.partition(key, -k, axis=1)[:, -k, None]
        at, column = np.divmod(np.flatnonzero(better), tile.shape[1])
        self._waiting.append((at, key[at, column], tile[at, column], positions[column]))
        self._count += len(at)
        if self._count >= k * rows:
            self.sort_in()

    def sort_in(self) -> Lists:
        """Sort the waiting entries into the lists, and return these.

        Entries are in the order of their positions, which a stable sort keeps: of equal scores the
        first wins.
        """
        if self._count:
            rows, k = self._best.key.shape
            best = self._best
            listed = (np.repeat(np.arange(rows), k), best.key, best.score, best.position)
            columns = zip(listed, *self._waiting, strict=True)
            row, key, score, position = (
                np.concatenate([part.ravel() for part in parts]) for parts in columns
            )
            # Entries are sorted by row, then by key. Each row has at least the k entries of its list:
            # its first k begin where the row before ends.
            sizes = np.bincount(row)
            ranked = np.lexsort((-key, row))
            kept = ranked[(np.cumsum(sizes) - sizes)[:, None] + np.arange(k)]
            self._best = Lists(key[kept], score[kept], position[kept])
            self._waiting, self._count = [], 0
        return self._best


def keys(tile: NDArray[Any], order: Order) -> NDArray[Any]:
    """Return keys of scores: the larger key comes first."""
    if order == "largest":
        return tile
    turned: NDArray[Any] = np.negative(tile) if order == "smallest" else np.abs(tile)
    return turned


def merge(left: Lists, right: Lists) -> Lists:
    """Return the first k entries of two lists of each target."""
    return first_of(Lists.joined([left, right], axis=1), left.key.shape[1])


def first_of(lists: Lists, k: int) -> Lists:
    """Return the first k entries of each list, in order; of equal ones the first position."""
    first = np.lexsort((lists.position, -lists.key), axis=1)[:, :k]
    parts = (lists.key, lists.score, lists.position)
    return Lists(*(np.take_along_axis(part, first, axis=1) for part in parts))


def select_bytes(k: int, columns: int) -> int:
    """Return the bytes for examining some rows of a tile and sorting in their waiting entries."""
    return SELECT_BYTES + 4 * k * max(1, SELECT_VALUES // columns) * (STATE_BYTES + 32)


def group_size(k: int, columns: int) -> int:
    """Return the columns of a group, chosen so that groups and candidates are about equally many.

    Examples
    --------
    >>> [group_size(k, 8192) for k in (20, 100, 2000, 8192)]
    [16, 8, 2, 1]
    """
    return 1 << int(math.log2(max(1.0, math.sqrt(columns / k))))


def device_list_bytes(k: int, columns: int) -> int:
    """Return the bytes that each target takes on a GPU: its list, and work on its part of a tile."""
    size = group_size(k, columns)
    candidates = k * size + columns % size if size > 1 else columns
    looked_at = k + max(candidates, columns // size)
    # Keys; ranks as they are made, joined, and used by topk; two lists, and entries gathered for them.
    return 4 * columns + 64 * looked_at + 96 * k


def check_finite(tile: NDArray[Any], target: int, positions: NDArray[np.int64]) -> None:
    """Raise a :class:`NumericsError` that names the first score that is not finite."""
    # If the sum is finite, so are all its terms, and nothing is kept. An infinite sum may be an
    # overflow of finite terms: then each is looked at.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(np.add.reduce(tile, axis=None)):
            return
    bad = np.argwhere(~np.isfinite(tile))
    if len(bad):
        row, column = bad[0]
        raise NumericsError(
            f"the score of target {target + row} with train row {positions[column]} is "
            f"{tile[row, column]}: look for non-finite features or out_to_loss there"
        )

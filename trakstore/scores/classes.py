"""Classes of rows by their stored labels, found a piece of the column at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trakstore.passes.memory import memory_budget
from trakstore.passes.rows import Rows, column_pieces
from trakstore.planning import fit_slots

_PIECE = 2**16  # rows whose ids or labels are in memory at once
_VALUE_BYTES = 160  # of an id or label, as stored, as Python's own and in a set


@dataclass(frozen=True, eq=False)
class Groups:
    """Rows in groups.

    Attributes
    ----------
    of : ndarray of int32, shape (n,)
        The group of each row; -1 for rows that are in none.
    counts : tuple of int
        Rows of each group.
    labels : ndarray, shape (groups,)
        Their names, sorted.
    """

    of: NDArray[np.int32]
    counts: tuple[int, ...]
    labels: NDArray[Any]

    def reach(self, start: int, stop: int) -> bool:
        """Tell whether a group has rows in start..stop."""
        return bool((self.of[start:stop] >= 0).any())

    def within(self, start: int, stop: int) -> list[tuple[int, NDArray[np.int64]]]:
        """Return the groups with rows in start..stop, and these rows counted from ``start``."""
        here = self.of[start:stop]
        return [(int(one), np.flatnonzero(here == one)) for one in np.unique(here) if one >= 0]


def classes_of(column: Rows, wanted: NDArray[np.bool_] | None = None) -> Groups:
    """Return a group for each label of the rows that are wanted, by default of all."""
    rows = column.shape[0]
    wanted = np.broadcast_to(True, rows) if wanted is None else wanted
    of, own = np.full(rows, -1, np.int32), list[NDArray[Any]]()
    for low, labels in pieces(column):
        own.append(np.unique(labels[wanted[low : low + len(labels)]]))
    names = np.unique(np.concatenate(own))
    counts = np.zeros(len(names), np.int64)
    for low, labels in pieces(column):
        chosen = np.flatnonzero(wanted[low : low + len(labels)])
        of[low + chosen] = at = np.searchsorted(names, labels[chosen])
        counts += np.bincount(at, minlength=len(names))
    return Groups(of, tuple(counts.tolist()), names)


def pieces(column: Rows) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield the first row and the values of each piece of a column."""
    return column_pieces(column, _PIECE)


def need_class_memory(rows: int, memory_limit: int | str | None) -> None:
    """Raise a :class:`MemoryLimitError` where the classes of so many rows do not fit."""
    # A mark and a number for each row.
    fixed, limit = 5 * rows + _VALUE_BYTES * min(rows, _PIECE), memory_budget(memory_limit)
    fit_slots(1, 1, fixed, 0, limit, f"a choice among {rows} rows by ids or labels")

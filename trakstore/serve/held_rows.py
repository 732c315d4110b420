"""Train rows of small stores, kept in memory for the next question."""

from __future__ import annotations

import math
import threading
from dataclasses import replace

from trakstore.passes.dask_cluster import active_client
from trakstore.passes.rows import ArrayRows, Rows, whole_column
from trakstore.scores.factored import Scores
from trakstore.storage.layout import Epoch

MOST_HELD = 2**28  # most bytes of all epochs together


class HeldRows:
    """Train features of each epoch, read once if all together are small.

    Parameters
    ----------
    budget : int
        Bytes that may be used; never more than 256 MB are.
    """

    def __init__(self, budget: int) -> None:
        self._most = min(MOST_HELD, budget)
        self._features: dict[Epoch, Rows] = {}
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes of the rows that are held."""
        with self._lock:
            return sum(map(_bytes, self._features.values()))

    def let_go(self) -> None:
        """Drop the rows."""
        with self._lock:
            self._features.clear()

    def held(self, scores: Scores) -> Scores:
        """Return the same scores with rows in memory, if these fit; their tiles are the same."""
        # A cluster's workers read the rows themselves: otherwise each question would send them.
        if active_client() is not None or sum(map(_bytes, _trains(scores))) > self._most:
            return scores
        # Under the lock, so that methods that are made at once read the rows once.
        with self._lock:
            for part in scores.parts:
                if part.epoch not in self._features:
                    self._features[part.epoch] = _in_memory(part.train)
        parts = [
            replace(
                part,
                train=self._features[part.epoch],
                column_scale=part.column_scale and _in_memory(part.column_scale),
            )
            for part in scores.parts
        ]
        return replace(scores, parts=tuple(parts))


def _trains(scores: Scores) -> list[Rows]:
    return [part.train for part in scores.parts]


def _bytes(rows: Rows) -> int:
    return math.prod(rows.shape) * rows.dtype.itemsize


def _in_memory(rows: Rows) -> ArrayRows:
    # With the same chunks as stored, so that tiles, and with them roundings, stay the same.
    return ArrayRows(whole_column(rows), rows.chunk_rows)

"""A column of numbers that keeps the chunk it read last."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trakstore.passes.rows import Rows, is_near


class LastChunk:
    """Rows for one thread that reads ascending ranges.

    A chunk of numbers belongs to many tiles of features, each of which would read all of it again.

    Parameters
    ----------
    base : Rows
    """

    def __init__(self, base: Rows) -> None:
        self._base = base
        self._first, self._kept = 0, base.read(0, 0)
        # From another machine, pieces are read ahead exactly as they were asked for.
        self._by_chunk = is_near(base)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._base.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._base.dtype

    @property
    def chunk_rows(self) -> int:
        return self._base.chunk_rows

    @property
    def token(self) -> str:
        return self._base.token

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return rows ``start`` to ``stop``."""
        if not self._by_chunk:
            return self._base.read(start, stop)
        if not self._first <= start <= stop <= self._first + len(self._kept):
            first = start // self.chunk_rows * self.chunk_rows
            last = min(self.shape[0], max(stop, first + self.chunk_rows))
            self._first, self._kept = first, self._base.read(first, last)
        return self._kept[start - self._first : stop - self._first]

"""A column of which the last chunk that was read is kept."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from trakstore.passes import last_chunk
from trakstore.passes.last_chunk import LastChunk
from trakstore.passes.rows import ArrayRows


@dataclass(frozen=True, eq=False)
class _Counted(ArrayRows):
    reads: list[tuple[int, int]] = field(default_factory=list)

    def read(self, start, stop):
        self.reads.append((start, stop))
        return super().read(start, stop)


RANGES = [(0, 4), (4, 8), (8, 12), (12, 14), (20, 23)]


@pytest.mark.parametrize(
    ("near", "wanted"),
    [(True, [(0, 0), (0, 10), (0, 12), (10, 20), (20, 23)]), (False, [(0, 0), *RANGES])],
)
def test_a_chunk_is_read_once_where_it_is_near(monkeypatch, near, wanted):
    monkeypatch.setattr(last_chunk, "is_near", lambda _: near)
    numbers = np.arange(23) * 3
    base = _Counted(numbers, 10)
    column = LastChunk(base)
    for start, stop in RANGES:
        np.testing.assert_array_equal(column.read(start, stop), numbers[start:stop])
    assert base.reads == wanted
    assert (column.shape, column.dtype, column.token) == (base.shape, base.dtype, base.token)

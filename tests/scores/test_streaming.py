from __future__ import annotations

import numpy as np
import pytest

from trakstore.errors import MemoryLimitError
from trakstore.scores.streaming import for_each_tile
from trakstore.scores.window_plans import plan_windows


def test_every_tile_is_written_once(make_scores):
    scores, _ = make_scores(m=30, n=205)
    out, count = np.zeros((30, 205), dtype=np.float32), np.zeros((30, 205), dtype=int)
    starts = set()

    def write(t0, t1, n0, n1, tile):
        out[t0:t1, n0:n1] = tile
        count[t0:t1, n0:n1] += 1
        starts.add((t0, n0))

    for_each_tile(scores, write, "12kB", align=4)
    np.testing.assert_array_equal(count, 1)
    np.testing.assert_allclose(out, np.asarray(scores), rtol=1e-4, atol=1e-5)
    assert len({t0 for t0, _ in starts}) > 1
    assert all(t0 % 4 == 0 and n0 % scores.tile_rows == 0 for t0, n0 in starts)


def test_less_memory_gives_smaller_windows_then_a_refusal(make_scores):
    scores, _ = make_scores(m=3000, n=205)
    sizes = [plan_windows(scores.sizes, "x", limit).targets for limit in ("1MB", "300kB", "120kB")]
    assert sizes[0] == 3000 > sizes[1] > sizes[2] >= 1
    with pytest.raises(MemoryLimitError, match="x needs at least"):
        plan_windows(scores.sizes, "x", "1kB")


def test_tasks_give_way_to_targets(make_scores, monkeypatch):
    monkeypatch.setattr("trakstore.scores.window_plans.task_slots", lambda: 8)
    scores, _ = make_scores(m=300, n=205)
    assert plan_windows(scores.sizes, "x", "10MB", task_bytes=10**6).workers == 8
    few = plan_windows(scores.sizes, "x", "4MB", task_bytes=10**6)
    assert 1 <= few.workers < 8
    assert few.targets >= 256

"""Fixtures of the tests of passes, kernels and scores: drawn features and scores, small tiles."""

from __future__ import annotations

import numpy as np
import pytest

from trakstore.passes import scheduler
from trakstore.passes.rows import ArrayRows
from trakstore.scores.factored import Scores
from trakstore.scores.parts import Part

__all__ = ["draw", "make_scores", "small_tiles"]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """One chunk a tile, so that small arrays are cut into many."""
    monkeypatch.setattr(scheduler, "TILE_ROWS", 1)


@pytest.fixture
def draw():
    """Seeded features of some dtype."""
    rng = np.random.default_rng(7)

    def features(*shape, dtype="float32"):
        return rng.standard_normal(shape).astype(dtype)

    return features


@pytest.fixture
def make_scores(draw):
    """Scores of random factors, and the arrays behind them."""

    def make(m=9, n=101, k=6, epochs=(1, 5), *, chunk=8, scaled=True, dtype="float32", **options):
        parts, arrays = [], []
        for epoch in epochs:
            target, train = draw(m, k, dtype=dtype), draw(n, k, dtype=dtype)
            scale = np.abs(draw(n)) if scaled else None
            column = None if scale is None else ArrayRows(scale, 2 * chunk)
            rows = ArrayRows(target, 4), ArrayRows(train, chunk)
            parts.append(Part(epoch, *rows, column_scale=column, weight=1.5))
            arrays.append((target, train, scale))
        ids = ArrayRows(np.arange(m) + 1000, 4), ArrayRows(np.arange(n) * 10, 2 * chunk)
        return Scores("test", tuple(parts), *ids, **options), arrays

    return make

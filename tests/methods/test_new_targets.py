"""New targets of scores: what a split of them would have, or a refusal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import trakstore as ts
from trakstore.errors import TrakStoreError
from trakstore.methods.new_targets import of_new_targets


def made(path: Path) -> ts.FeatureStore:
    store = ts.FeatureStore.create(path, projection=ts.ProjectionSpec("sjlt", 8))
    rng = np.random.default_rng(0)
    for split, rows in (("train", 30), ("test", 4), ("new", 3)):
        X, q = rng.normal(size=(rows, 8)).astype("f"), rng.uniform(size=rows)
        store.write_split(0, split, X, out_to_loss=q)
    return store


def test_whitened_scores_are_those_of_a_split_and_mixed_ones_are_refused(tmp_path: Path) -> None:
    store = made(tmp_path / "s")
    split = store.split(0, "new")
    columns = {0: {n: split.column(n).read(0, 3) for n in ("features", "out_to_loss", "norm")}}
    plain = of_new_targets(ts.whitened_cos_scores(store), columns, np.arange(3))
    np.testing.assert_array_equal(plain, ts.whitened_cos_scores(store, targets="new"))
    assert plain.target_positions is None  # they are no rows of the split that the others are of
    # A kernel with other targets in it gives other scores.
    mixed = ts.whitened_cos_scores(store, mix=0.9)
    with pytest.raises(TrakStoreError, match=r"kernel with mix 0\.9 of their own targets"):
        of_new_targets(mixed, columns, np.arange(3))

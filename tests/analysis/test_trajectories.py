"""Scores of chosen samples over epochs, and histograms, against whole matrices."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import trakstore as ts
from trakstore.analysis import distribution, trajectories
from trakstore.errors import NotFoundError, TrakStoreError

EPOCHS = (1, 5, "final")


@pytest.fixture
def store(tmp_path: Path) -> ts.FeatureStore:
    rng = np.random.default_rng(0)
    made = ts.FeatureStore.create(tmp_path / "s.zarr", projection=ts.ProjectionSpec("sjlt", dim=6))
    for at, epoch in enumerate(EPOCHS):
        for split, rows in (("train", 50), ("test", 7)):
            features = (10**at * rng.normal(size=(rows, 6))).astype(np.float32)
            ids = [f"{split}{i}" for i in range(rows)]
            made.write_split(epoch, split, features, out_to_loss=rng.uniform(0.1, 1, rows), ids=ids)
    made.mask("train", ["train4"])
    return made


def test_trajectories(store: ts.FeatureStore) -> None:
    scores = ts.trak_scores(store).isel(target=[3, 0])
    top = ts.top_k(scores, 4)["position"].values
    found = trajectories(scores, top)
    assert found["epoch"].values.tolist() == list(EPOCHS)
    assert found["target_id"].values.tolist() == ["test3", "test0"]
    assert found["train"].values.tolist() == [[f"train{row}" for row in line] for line in top]
    columns = np.searchsorted(np.delete(np.arange(50), 4), top)
    for at, epoch in enumerate(EPOCHS):
        dense = np.asarray(scores.epoch(epoch), dtype=np.float64)
        wanted = np.take_along_axis(dense, columns, axis=1)
        np.testing.assert_allclose(found["score"][at], wanted, rtol=1e-5)
        moved = (wanted - dense.mean(1, keepdims=True)) / dense.std(1, keepdims=True)
        np.testing.assert_allclose(found["standard"][at], moved, rtol=1e-4)


def test_positions_that_cannot_be(store: ts.FeatureStore) -> None:
    scores = ts.trak_scores(store)
    with pytest.raises(NotFoundError, match="row 4 is not"):
        trajectories(scores, np.full((7, 1), 4))
    with pytest.raises(NotFoundError, match="row 50 is not"):
        trajectories(scores, np.full((7, 1), 50))
    with pytest.raises(TrakStoreError, match="each of 7 targets"):
        trajectories(scores, np.zeros((3, 1), dtype=int))


@pytest.mark.parametrize("memory_limit", [None, 5000])
def test_distribution(store: ts.FeatureStore, memory_limit: int | None) -> None:
    scores = ts.trak_scores(store)
    found, dense = distribution(scores, 11, memory_limit=memory_limit), np.asarray(scores, "f8")
    assert found["target_id"].values.tolist() == [f"test{i}" for i in range(7)]
    for row, count, edge in zip(dense, found["count"].values, found["edge"].values, strict=True):
        inner = np.linspace(row.min(), row.max(), 12)
        np.testing.assert_allclose(edge, inner, rtol=1e-5)
        wanted = [((row >= a) & (row < b)).sum() for a, b in pairwise(inner)]
        wanted[-1] += (row == row.max()).sum()
        assert count.tolist() == wanted
    np.testing.assert_allclose(found["std"], dense.std(1), rtol=1e-5)
    standard = (dense - dense.mean(1, keepdims=True)) / dense.std(1, keepdims=True)
    edges = found["pooled_edge"].values
    wanted = np.bincount(np.clip(np.digitize(standard.ravel(), edges) - 1, 0, 10), minlength=11)
    assert found["pooled"].values.tolist() == wanted.tolist()


def test_what_has_no_distribution(store: ts.FeatureStore) -> None:
    with pytest.raises(TrakStoreError, match="bins must be"):
        distribution(ts.trak_scores(store), 1)
    place = ts.FeatureStore.create("memory://nan", projection=ts.ProjectionSpec("sjlt", dim=6))
    features = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    place.write_split(0, "train", features)
    equal = ts.grad_dot_scores(place, targets="train", of="output").isel(train=[0])
    found = distribution(equal, 3)
    assert found["count"].values.sum() == 50 and found["pooled"].values.sum() == 0

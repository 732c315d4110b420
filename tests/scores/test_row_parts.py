"""Parts of a train row: their scores add up to the row's, whatever the kernel and the scales."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import trakstore as ts
from trakstore.errors import TrakStoreError
from trakstore.scores.row_parts import of_row_parts, parts_apart

ROWS, PARTS, DIM = 7, 3, 5


@pytest.fixture
def store(tmp_path: Any) -> ts.FeatureStore:
    rng = np.random.default_rng(0)
    made = ts.FeatureStore.create(
        tmp_path / "s.zarr", projection=ts.ProjectionSpec("sjlt", dim=DIM)
    )
    for epoch in (1, 2):
        for split, rows in (("train", ROWS), ("test", 2)):
            features = rng.normal(size=(rows, DIM)).astype(np.float32)
            made.write_split(epoch, split, features, out_to_loss=rng.uniform(0.1, 1, rows))
    return made


def parts_of(store: ts.FeatureStore, row: int) -> dict[Any, Any]:
    """Random rows that add up to a train row."""
    rng, made = np.random.default_rng(1), {}
    for epoch in (1, 2):
        whole = np.asarray(store.features(epoch, "train"))[row]
        some = rng.normal(size=(PARTS - 1, DIM)).astype(np.float32)
        made[epoch] = np.vstack([some, whole - some.sum(0)])
    return made


def scores_of(scores: Any, row: int, parts: dict[Any, Any]) -> Any:
    """Scores of the parts: the shares of all epochs."""
    return sum(of_row_parts(scores, row, epoch, some) for epoch, some in parts.items())


@pytest.mark.parametrize("average", ["factors", "scores"])
def test_trak_of_parts_is_trak_of_rows_that_stand_in_its_place(
    store: ts.FeatureStore, average: Any
) -> None:
    scores, parts = ts.trak_scores(store, average=average), parts_of(store, 4)
    got = scores_of(scores, 4, parts)
    np.testing.assert_allclose(got.sum(1), np.asarray(scores)[:, 4], rtol=1e-5)
    # By hand: T (K + λI)⁻¹ φᵀ of each epoch, with the mean of Q apart from it, or with its own Q.
    epochs, q = [], []
    for epoch in (1, 2):
        train, test = (np.asarray(store.features(epoch, s), np.float64) for s in ("train", "test"))
        gram = train.T @ train
        kernel = gram + np.trace(gram) / ROWS * np.eye(DIM)
        epochs.append(test @ np.linalg.solve(kernel, parts[epoch].T.astype(np.float64)))
        q.append(float(store.split(epoch, "train").column("out_to_loss").read(4, 5)[0]))
    apart = np.mean(epochs, 0) * np.mean(q)
    together = np.mean([one * scale for one, scale in zip(epochs, q, strict=True)], 0)
    np.testing.assert_allclose(got, apart if average == "factors" else together, rtol=1e-4)


def test_cosines_of_parts_have_the_rows_length(store: ts.FeatureStore) -> None:
    scores, parts = ts.grad_cos_scores(store), parts_of(store, 2)
    got = scores_of(scores, 2, parts)
    np.testing.assert_allclose(got.sum(1), np.asarray(scores)[:, 2], rtol=1e-4, atol=1e-6)


def test_other_rows_are_told_and_thresholds_refused(store: ts.FeatureStore) -> None:
    scores, parts = ts.trak_scores(store), parts_of(store, 4)
    for epoch, some in parts.items():
        assert parts_apart(scores, 4, epoch, some) < 1e-6
        assert parts_apart(scores, 3, epoch, some) > 0.1
    with pytest.raises(TrakStoreError, match="soft threshold"):
        scores_of(replace(scores, soft_threshold=0.1), 4, parts)

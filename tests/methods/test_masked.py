"""Masked rows leave kernels, axes and lists; the others keep their positions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference

import trakstore as ts
from trakstore.errors import SpecMismatchError
from trakstore.kernels.blocked_cholesky import BlockedCholesky
from trakstore.kernels.iterative import ConjugateGradients, Dual
from trakstore.storage.checking.verification import verify_store

N, M, K = 60, 13, 8
MASKED = [0, 7, 8, 9, 31, 59]


@pytest.fixture
def store(tmp_path: Path) -> ts.FeatureStore:
    made = ts.FeatureStore.create(tmp_path / "s.zarr", projection=ts.ProjectionSpec("sjlt", K))
    rng = np.random.default_rng(0)
    for epoch in (1, 2):
        for split, rows in (("train", N), ("test", M)):
            X = rng.normal(size=(rows, K)).astype(np.float32)
            q = rng.uniform(size=rows).astype(np.float32)
            made.write_split(
                epoch, split, X, out_to_loss=q, ids=np.arange(rows) + 100, block_rows=7
            )
    return made


def arrays(store: ts.FeatureStore, split: str, column: str, without: list[int]) -> list[Any]:
    found = [store.split(epoch, split) for epoch in store.epochs]
    return [np.delete(one.column(column).read(0, one.rows), without, axis=0) for one in found]


def expected(store: ts.FeatureStore, without: list[int], targets_without: list[int]) -> Any:
    return reference.trak(
        arrays(store, "test", "features", targets_without),
        arrays(store, "train", "features", without),
        arrays(store, "train", "out_to_loss", without),
    )


@pytest.mark.parametrize("stored_before", [True, False])
def test_masked_rows_are_as_if_they_were_not_there(
    store: ts.FeatureStore, stored_before: bool
) -> None:
    if stored_before:  # so that grams are brought up to date, not computed
        ts.trak_scores(store)
    store.mask("train", [100 + i for i in MASKED[:3]])
    if stored_before:
        ts.trak_scores(store)
    store.mask("train", [100 + i for i in MASKED[3:]])
    store.mask("test", [100, 105])
    scores = ts.trak_scores(store)
    dense = expected(store, MASKED, [0, 5])
    assert scores.shape == (M - 2, N - len(MASKED))
    np.testing.assert_allclose(np.asarray(scores), dense, rtol=1e-4, atol=1e-5)
    top = ts.top_k(scores, 5)
    left = np.delete(np.arange(N), MASKED)
    positions = left[reference.top_k(np.asarray(scores), 5)]
    np.testing.assert_array_equal(top.position, positions)
    np.testing.assert_array_equal(top.train, positions + 100)
    np.testing.assert_array_equal(top.target_id, np.delete(np.arange(M), [0, 5]) + 100)
    report = ts.kernel_report(store, 1)
    features = arrays(store, "train", "features", MASKED)[0].astype(float)
    assert report.n == N - len(MASKED)
    np.testing.assert_allclose(report.trace, np.sum(features**2), rtol=1e-6)


@pytest.mark.parametrize(
    "solver", [None, Dual(), ConjugateGradients(), BlockedCholesky()], ids=lambda one: str(one)[:8]
)
def test_every_solver_leaves_them_out(store: ts.FeatureStore, solver: Any) -> None:
    store.mask("train", [100 + i for i in MASKED])
    scores = ts.trak_scores(store, solver=solver)
    np.testing.assert_allclose(
        np.asarray(scores), expected(store, MASKED, []), rtol=1e-3, atol=1e-4
    )
    assert verify_store(store).ok
    wanted = np.arange(scores.shape[1]) % 2 == 0
    top = ts.top_k(scores, 3, where=wanted)
    left = np.delete(np.arange(N), MASKED)[wanted]
    best = reference.top_k(np.asarray(scores)[:, wanted], 3)
    np.testing.assert_array_equal(top.position, left[best])
    np.testing.assert_array_equal(top.train, left[best] + 100)


def test_taking_rows_in_again_gives_the_old_scores(store: ts.FeatureStore) -> None:
    before = np.asarray(ts.trak_scores(store))
    store.mask("train", [103, 104])
    ts.trak_scores(store)
    store.mask("train", [103, 104], masked=False)
    np.testing.assert_allclose(np.asarray(ts.trak_scores(store)), before, rtol=1e-6, atol=1e-7)


def test_rows_that_are_appended_count(store: ts.FeatureStore) -> None:
    ts.trak_scores(store)
    rng = np.random.default_rng(5)
    for epoch in store.epochs:
        X = rng.normal(size=(11, K)).astype(np.float32)
        store.append(epoch, "train", X, out_to_loss=np.ones(11), ids=np.arange(11) + 900)
    scores = ts.trak_scores(store)
    np.testing.assert_allclose(np.asarray(scores), expected(store, [], []), rtol=1e-4, atol=1e-5)
    assert scores.shape == (M, N + 11)


def test_epochs_must_be_masked_alike(store: ts.FeatureStore) -> None:
    store.mask("train", [103], epochs=[1])
    store.mask("train", [104], epochs=[2])
    with pytest.raises(SpecMismatchError, match="other rows masked"):
        ts.trak_scores(store)
    assert ts.trak_scores(store, epochs=1).shape == (M, N - 1)

"""Scores over epochs against whole matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

import trakstore as ts
from trakstore.analysis.distribution import distribution
from trakstore.analysis.evolution import evolution
from trakstore.analysis.group_influence import contrast
from trakstore.analysis.trajectories import trajectories
from trakstore.analysis.transition import transition
from trakstore.errors import MemoryLimitError, TrakStoreError

EPOCHS: tuple[Any, ...] = (1, 5, "final")


@pytest.fixture(scope="module")
def store(tmp_path_factory: Any) -> ts.FeatureStore:
    rng = np.random.default_rng(0)
    where = tmp_path_factory.mktemp("evolution") / "s.zarr"
    made = ts.FeatureStore.create(where, projection=ts.ProjectionSpec("sjlt", dim=6))
    for epoch in EPOCHS:
        for split, rows in (("train", 50), ("test", 7)):
            features = rng.normal(size=(rows, 6)).astype(np.float32)
            q = rng.uniform(0.1, 1, rows).astype(np.float32)
            ids = [f"{split}{i}" for i in range(rows)]
            labels = np.arange(rows) % 3
            made.write_split(epoch, split, features, out_to_loss=q, ids=ids, labels=labels)
    made.mask("train", ["train4"])
    return made


@pytest.mark.parametrize("memory_limit", [None, 5000 * 2])
def test_every_number(store: ts.FeatureStore, memory_limit: int | None) -> None:
    scores = ts.trak_scores(store)
    found = evolution(scores, 6, memory_limit=memory_limit)
    assert found["epoch"].values.tolist() == [1, 5, "final"]
    assert found["target_id"].values.tolist() == [f"test{i}" for i in range(7)]
    before = None
    kept_rows = np.delete(np.arange(50), 4)
    for at, epoch in enumerate(EPOCHS):
        dense = np.asarray(scores.epoch(epoch), dtype=np.float64)
        one = found.isel(epoch=at)
        for name in ("mean", "std", "min", "max"):
            np.testing.assert_allclose(one[name], getattr(dense, name)(1), rtol=1e-5, atol=1e-8)
        order = np.argsort(-dense, axis=1, kind="stable")
        np.testing.assert_array_equal(one["position"], kept_rows[order[:, :6]])
        np.testing.assert_allclose(one["score"], np.sort(dense, axis=1)[:, :-7:-1], rtol=1e-5)
        assert one["train"].values[2, 0] == f"train{kept_rows[order[2, 0]]}"
        if before is None:
            assert np.isnan(one["spearman"]).all() and np.isnan(one["kept"]).all()
            assert not one["rank_before"].any()
        else:
            old = np.argsort(-before, axis=1, kind="stable")
            for t in range(7):
                assert one["spearman"].values[t] == pytest.approx(
                    spearmanr(dense[t], before[t]).statistic
                )
                shared = len(set(order[t, :6]) & set(old[t, :6])) / 6
                assert one["kept"].values[t] == pytest.approx(shared)
                ranks = [old[t].tolist().index(j) + 1 for j in order[t, :6]]
                assert one["rank_before"].values[t].tolist() == ranks
        before = dense


@pytest.mark.parametrize("order", ["smallest", "magnitude"])
def test_other_orders(store: ts.FeatureStore, order: Any) -> None:
    scores = ts.grad_dot_scores(store)
    found = evolution(scores, 3, order=order)
    for at, epoch in enumerate(EPOCHS):
        top = ts.top_k(scores.epoch(epoch), 3, order=order)
        np.testing.assert_array_equal(found["position"][at], top["position"])


def test_chosen_targets_and_groups_of_targets(store: ts.FeatureStore) -> None:
    scores = ts.trak_scores(store)
    some = evolution(scores.isel(target=[5, 2]), 2)
    np.testing.assert_array_equal(some["position"], evolution(scores, 2)["position"][:, [5, 2]])
    grouped = evolution(ts.group_scores(scores, targets="label", how="mean"), 2)
    assert grouped["target_id"].values.tolist() == [0, 1, 2]
    dense = np.asarray(scores.epoch(5), dtype=np.float64)
    np.testing.assert_allclose(grouped["max"][1, 1], dense[[1, 4]].mean(0).max(), rtol=1e-5)


def test_refusals(store: ts.FeatureStore) -> None:
    scores = ts.trak_scores(store)
    with pytest.raises(TrakStoreError, match="k must be in"):
        evolution(scores, 50)
    with pytest.raises(TrakStoreError, match="order must be"):
        evolution(scores, 3, order="last")  # type: ignore[arg-type]
    with pytest.raises(MemoryLimitError, match="one target"):
        evolution(scores, 3, memory_limit=2000)


@pytest.mark.parametrize("given", [None, np.ones((2, 3))])
def test_what_is_no_scores_is_refused(store: ts.FeatureStore, given: Any) -> None:
    scores, mask = ts.trak_scores(store), np.arange(7) < 3
    for ask in (
        lambda: evolution(given),
        lambda: distribution(given),
        lambda: contrast(given, mask, ~mask),
        lambda: trajectories(given, [[0]]),
        lambda: transition(scores, given),
        lambda: transition(scores, scores, [(given, scores)]),
    ):
        with pytest.raises(TrakStoreError, match=f"needed Scores, .* got {type(given).__name__}"):
            ask()

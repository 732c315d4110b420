from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy.stats import spearmanr

import trakstore as ts
from trakstore.errors import TrakStoreError
from trakstore.evaluation.lds import check_subsets, lds, lds_difference, predicted_outputs
from trakstore.evaluation.retraining import Retrained, retrain
from trakstore.sampling import SubsetPlan


def test_by_hand() -> None:
    """Three train samples, all pairs of them; predictions 3, 5, 6 and -1, 2, 1."""
    scores = np.array([[1.0, 2, 4], [-1, 0, 2]])
    subsets = np.array([[1, 1, 0], [1, 0, 1], [0, 1, 1]], dtype=bool)
    predicted = predicted_outputs(scores, subsets)
    np.testing.assert_array_equal(predicted, [[3, 5, 6], [-1, 1, 2]])
    outputs = np.array([[0.1, 5.0], [0.2, 4.0], [0.7, 6.0]])  # ranks 1 2 3 and 2 1 3
    found = lds(scores, subsets, outputs)
    np.testing.assert_allclose(found.per_target, [1, 0.5])  # 1 - 6 · 2 / (3 · 8)
    assert (found.mean, found.subsets, found.constant) == (pytest.approx(0.75), 3, 0)


def test_against_scipy_with_models_of_equal_subsets_averaged(rng: np.random.Generator) -> None:
    scores = rng.normal(size=(6, 40))
    subsets = SubsetPlan(40, repeats=3).masks(0, 60)
    outputs = subsets @ scores.T + rng.normal(size=(60, 6))
    found = lds(scores, subsets, outputs)
    means, masks = outputs.reshape(20, 3, 6).mean(1), subsets[::3]
    wanted = [spearmanr(masks @ scores[t], means[:, t]).statistic for t in range(6)]
    np.testing.assert_allclose(found.per_target, wanted)
    assert found.subsets == 20
    assert found.low < found.mean < found.high


def test_the_interval_holds_the_truth(rng: np.random.Generator) -> None:
    """Of 100 draws of models and targets, at least 88 intervals of 95% hold the mean of all."""
    truth = rng.normal(size=(400, 30))
    noise = 3.0
    plan = SubsetPlan(30)
    masks = plan.masks(0, 4000)
    outputs = masks @ truth.T + noise * rng.normal(size=(4000, 400))
    whole = lds(truth, masks, outputs, resamples=1).mean
    held = 0
    for i in range(100):
        models = slice(40 * i, 40 * i + 40)
        targets = rng.choice(400, 25, replace=False)
        found = lds(truth[targets], masks[models], outputs[models][:, targets], resamples=200)
        held += found.low <= whole <= found.high
    assert held >= 88


def test_differences_are_paired(rng: np.random.Generator) -> None:
    scores = rng.normal(size=(30, 50))
    masks = SubsetPlan(50).masks(0, 80)
    outputs = masks @ scores.T + rng.normal(size=(80, 30))
    good, bad = (
        lds(scores, masks, outputs),
        lds(scores + rng.normal(size=scores.shape), masks, outputs),
    )
    found = lds_difference(good, bad)
    assert found.mean == pytest.approx(good.mean - bad.mean)
    assert 0 < found.low < found.mean < found.high
    assert found.high - found.low < (good.high - bad.low) - (good.low - bad.high)
    with pytest.raises(TrakStoreError, match="same targets"):
        lds_difference(good, lds(scores[:5], masks, outputs[:, :5]))


def test_what_tells_nothing_counts_as_zero(rng: np.random.Generator) -> None:
    masks = SubsetPlan(10).masks(0, 9)
    outputs = rng.normal(size=(9, 2))
    found = lds(np.stack([np.zeros(10), rng.normal(size=10)]), masks, outputs)
    assert found.per_target[0] == 0
    assert found.constant == 1
    assert np.isfinite(found.resampled).all()


def test_factored_scores_and_windows(rng: np.random.Generator, tmp_path: Path) -> None:
    """The same of ``Scores`` in a store, in windows of few targets, and of the dense matrix."""
    store = ts.FeatureStore.create(tmp_path / "s.zarr", projection=ts.ProjectionSpec("identity"))
    store.write_split(0, "train", rng.normal(size=(60, 5)), out_to_loss=rng.random(60))
    store.write_split(0, "test", rng.normal(size=(9, 5)))
    scores = ts.trak_scores(store)
    masks, outputs = SubsetPlan(60).masks(0, 12), rng.normal(size=(12, 9))
    dense = lds(np.asarray(scores, dtype=np.float64), masks, outputs)
    for limit in (None, "8kB"):
        found = lds(scores, masks, outputs, memory_limit=limit)
        np.testing.assert_allclose(found.per_target, dense.per_target, atol=1e-12)


@pytest.mark.parametrize(
    ("scores", "subsets", "outputs", "error"),
    [
        (np.ones((2, 5)), np.eye(4, 6, dtype=bool), np.ones((4, 2)), "5 train rows"),
        (np.ones((2, 6)), np.eye(4, 6, dtype=bool), np.ones((4, 3)), "3 targets, scores of 2"),
        (np.ones((2, 6)), np.eye(4, 6, dtype=bool), np.ones((5, 2)), "models"),
        (np.ones((2, 6)), np.ones((4, 6), dtype=bool), np.ones((4, 2)), "different subsets"),
        (np.ones((2, 6)), np.eye(4, 6, dtype=bool), np.full((4, 2), np.nan), "NaN"),
        (np.full((2, 6), np.inf), np.eye(4, 6, dtype=bool), np.eye(4, 2), "is inf"),
    ],
)
def test_bad_input(scores: Any, subsets: Any, outputs: Any, error: str) -> None:
    with pytest.raises(TrakStoreError, match=error):
        lds(scores, subsets, outputs)


def test_ridge_regression_is_nearly_linear_in_its_samples(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    """Where TRAK is nearly exact, its LDS is above 0.95."""
    count, dim, penalty = 400, 6, 4.0
    x, t = rng.normal(size=(count, dim)), rng.normal(size=(50, dim))
    y = x @ rng.normal(size=dim) + rng.normal(size=count)

    def weights(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.linalg.solve(x[rows].T @ x[rows] + penalty * np.eye(dim), x[rows].T @ y[rows])

    def train(subsets: np.ndarray[Any, Any], _seeds: Any) -> Retrained:
        return Retrained(np.stack([t @ weights(mask) for mask in subsets]).astype(np.float32))

    place = tmp_path / "s.zarr"
    store = ts.FeatureStore.create(place, projection=ts.ProjectionSpec("identity"))
    left = y - x @ weights(np.ones(count, dtype=bool))
    store.write_split(0, "train", x, out_to_loss=left)
    store.write_split(0, "test", t)
    models = retrain(train, store, "halves", SubsetPlan(count), models=200)
    scores = ts.trak_scores(store, damping=ts.Damping(absolute=penalty))
    found = lds(scores, models["subset"].values, models["output"].values)
    assert found.low > 0.95
    assert lds(-np.asarray(scores), models["subset"].values, models["output"].values).mean < -0.95


def test_masked_rows_and_targets_leave_their_columns_out(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    train, test = rng.normal(size=(24, 4)), rng.normal(size=(5, 4))
    store = ts.FeatureStore.create(tmp_path / "s.zarr", projection=ts.ProjectionSpec("identity"))
    store.write_split(0, "train", train)
    store.write_split(0, "test", test)
    store.mask("train", [0, 7])
    store.mask("test", [2])
    scores, products = ts.grad_dot_scores(store, of="output"), test @ train.T
    rows, targets = np.delete(np.arange(24), [0, 7]), [0, 1, 3, 4]
    plan = SubsetPlan(24, without=store.split(0, "train").masked.tolist())
    masks = plan.masks(0, 20)
    outputs = masks @ products.T + rng.normal(size=(20, 5))
    np.testing.assert_allclose(
        predicted_outputs(scores, masks), (masks @ products.T).T[targets], rtol=1e-5, atol=1e-5
    )
    wanted = [spearmanr(masks @ products[t], outputs[:, t]).statistic for t in targets]
    found = lds(scores, masks, outputs)
    np.testing.assert_allclose(found.per_target, wanted)
    # Models may know the rows and targets that are left alone.
    few = lds(scores, masks[:, rows], outputs[:, targets])
    np.testing.assert_array_equal(few.per_target, found.per_target)
    # A selection of scores is one of the same stored rows: the others are worth nothing.
    some = scores.isel(target=[3, 0], train=[9, 0, 4])
    np.testing.assert_allclose(
        predicted_outputs(some, masks),
        (masks[:, [11, 1, 5]] @ products[[4, 0]][:, [11, 1, 5]].T).T,
        rtol=1e-5,
        atol=1e-5,
    )
    # Groups are no rows of the split.
    groups = ts.group_scores(scores, targets=np.array([0, 1, 0, 1]))
    sums = np.stack([outputs[:, [0, 3]].sum(1), outputs[:, [1, 4]].sum(1)], axis=1)
    wanted = [
        spearmanr(masks @ products[pair].sum(0), sums[:, i]).statistic
        for i, pair in enumerate(([0, 3], [1, 4]))
    ]
    np.testing.assert_allclose(lds(groups, masks, sums).per_target, wanted)
    with pytest.raises(TrakStoreError, match="need subsets of 22 or 24 train rows"):
        lds(scores, masks[:, :23], outputs)
    with pytest.raises(TrakStoreError, match="outputs are of 3 targets, scores of 4"):
        lds(scores, masks, outputs[:, :3])


@pytest.mark.parametrize("targets", [20, 6])
def test_an_array_is_read_by_the_names_of_its_dimensions(
    rng: np.random.Generator, targets: int
) -> None:
    matrix = rng.normal(size=(targets, 20))
    masks = SubsetPlan(20).masks(0, 15)
    outputs = masks @ matrix.T
    other = xr.DataArray(matrix.T, dims=("train", "target"))
    np.testing.assert_array_equal(predicted_outputs(other, masks), predicted_outputs(matrix, masks))
    assert lds(other, masks, outputs).mean == pytest.approx(1)
    with pytest.raises(TrakStoreError, match=r"the dimensions \(target, train\), got"):
        lds(xr.DataArray(matrix), masks, outputs)


def test_sums_that_are_equal_but_for_rounding_are_ties(rng: np.random.Generator) -> None:
    """Scores of classes alone: a subset counts by how many of its rows are of the target's."""
    classes, masks = np.arange(300) % 3, SubsetPlan(300).masks(0, 200)
    scores = np.stack([np.where(classes == t, 0.1, -0.05) for t in range(3)])
    counts = np.stack([masks[:, classes == t].sum(1) for t in range(3)])
    assert len(np.unique(masks @ scores[0])) > len(np.unique(counts[0]))  # they are told apart
    outputs = counts.T + 5 * rng.normal(size=(200, 3))
    wanted = [spearmanr(counts[t], outputs[:, t]).statistic for t in range(3)]
    for kind in (np.float64, np.float32):
        found = lds(scores.astype(kind), masks, outputs)
        np.testing.assert_allclose(found.per_target, wanted, rtol=1e-12)
    # Small differences that are there are no ties.
    close = 1 + 1e-7 * rng.normal(size=(2, 300)).astype(np.float32)
    outputs = masks @ close.astype(np.float64).T
    assert lds(close, masks, outputs).mean == pytest.approx(1)


def test_differences_are_of_the_same_models(rng: np.random.Generator) -> None:
    scores, plans = rng.normal(size=(4, 30)), [SubsetPlan(30, seed=seed) for seed in (0, 1)]
    results = [lds(scores, plan.masks(0, 20), plan.masks(0, 20) @ scores.T) for plan in plans]
    assert lds_difference(results[0], results[0]).mean == 0
    with pytest.raises(TrakStoreError, match="against the same models"):
        lds_difference(*results)


def test_plans_that_tell_nothing_are_known_before_training() -> None:
    for plan, models in ((SubsetPlan(9, share=1), 9), (SubsetPlan(9, repeats=3), 6)):
        with pytest.raises(TrakStoreError, match=r"three different subsets, got [12]"):
            check_subsets(plan, models)
    check_subsets(SubsetPlan(9, repeats=3), 7)


def test_subsets_of_zeros_and_ones_are_those_of_booleans(rng: np.random.Generator) -> None:
    scores, subsets = rng.normal(size=(3, 20)), rng.random((40, 20)) < 0.5
    outputs = rng.normal(size=(40, 3))
    wanted = lds(scores, subsets, outputs).per_target
    for given in (subsets.astype(int), subsets.astype(np.float32), subsets.tolist()):
        assert np.array_equal(lds(scores, given, outputs).per_target, wanted)  # type: ignore[arg-type]

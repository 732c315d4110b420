from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trakstore as ts
from trakstore.errors import SpecMismatchError, TrakStoreError
from trakstore.evaluation.removals import counterfactual
from trakstore.evaluation.retraining import Retrained

ROWS, TARGETS = 30, 4
WEIGHTS = np.random.default_rng(0).normal(size=(ROWS, TARGETS))
LABELS = (np.arange(ROWS) % 3, np.array([0, 1, 2, 0]))
CHANCE = np.array([0.0, 0, 0, 5])  # what the seed does to each target


def linear(subsets: Any, seeds: Any) -> Retrained:
    """Models whose outputs are sums of weights, and whose class is the sign."""
    noise = np.array([np.random.default_rng(seed).normal() for seed in seeds])
    output = (subsets @ WEIGHTS + np.outer(noise, CHANCE)).astype(np.float32)
    return Retrained(output, (output > 0).astype(np.int64))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    ts.FeatureStore.create(tmp_path / "s.zarr", projection=ts.ProjectionSpec("identity"))
    return tmp_path / "s.zarr"


def test_what_is_taken_away_is_missing(place: Path) -> None:
    """Scores are the truth: without the first, exactly their weights are gone."""
    chosen = [2, 0, 3]
    options: Any = {"sizes": (2, 5), "targets": chosen, "labels": LABELS, "repeats": 4}
    found = counterfactual(WEIGHTS.T, linear, place, "cf", **options)
    assert found["change"].dims == ("removal", "size", "target")
    for size in (2, 5):
        wanted = [np.sort(WEIGHTS[:, t])[-size:].sum() for t in chosen]
        top = found["change"].sel(removal="top", size=size)
        np.testing.assert_allclose(top, wanted, rtol=1e-5)  # seeds are the same with and without
        for other in ("random", "same_class"):
            assert (found["change"].sel(removal=other, size=size) < top).all()
    whole = WEIGHTS.sum(0)
    for at, t in enumerate(chosen[:2]):  # no noise: all four models flip, or none
        left = whole[t] - np.sort(WEIGHTS[:, t])[-5:].sum()
        flipped = float((left > 0) != (whole[t] > 0))
        assert found["flips"].sel(removal="top", size=5).values[at] == flipped
    np.testing.assert_array_equal(found["chance"][:2], 0)


def test_random_removals_are_of_the_class(place: Path) -> None:
    seen: list[Any] = []

    def noted(subsets: Any, seeds: Any) -> Retrained:
        seen.extend(subsets)
        return linear(subsets, seeds)

    counterfactual(WEIGHTS.T, noted, place, "cf", sizes=(3,), labels=LABELS, repeats=1)
    assert len(seen) == 1 + 3 * TARGETS
    assert seen[0].all()
    for t in range(TARGETS):
        top, random, same = (np.flatnonzero(~seen[1 + kind * TARGETS + t]) for kind in range(3))
        assert set(top) == set(np.argsort(-WEIGHTS[:, t])[:3])
        assert len(random) == len(same) == 3
        assert (LABELS[0][same] == LABELS[1][t]).all()


def test_it_goes_on_where_it_was(place: Path) -> None:
    options: Any = {"sizes": (2,), "repeats": 2, "at_once": 3}
    calls = []

    def stopping(subsets: Any, seeds: Any) -> Retrained:
        calls.append(len(seeds))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return linear(subsets, seeds)

    with pytest.raises(KeyboardInterrupt):
        counterfactual(WEIGHTS.T, stopping, place, "cf", **options)
    found = counterfactual(WEIGHTS.T, stopping, place, "cf", **options)
    assert sum(calls) - calls[1] == 2 * (1 + 2 * TARGETS)  # no labels: no removals of a class
    assert found["removal"].values.tolist() == ["top", "random"]
    with pytest.raises(SpecMismatchError):
        counterfactual(-WEIGHTS.T, stopping, place, "cf", **options)


def test_stored_scores_with_masked_rows_and_labels(
    rng: np.random.Generator, tmp_path: Path
) -> None:
    features, count = rng.normal(size=(12, 3)), 12
    store = ts.FeatureStore.create(tmp_path / "s.zarr", projection=ts.ProjectionSpec("identity"))
    store.write_split(0, "train", features, labels=np.arange(count) % 2)
    store.write_split(0, "test", rng.normal(size=(2, 3)), labels=[0, 1])
    store.mask("train", [0, 5])
    scores = ts.grad_dot_scores(store, of="output")
    assert scores.shape == (2, 10)
    gone: list[Any] = []

    def noted(subsets: Any, _seeds: Any) -> Retrained:
        gone.extend(~subsets)
        return Retrained(np.zeros((len(subsets), 2), dtype=np.float32))

    found = counterfactual(scores, noted, store, "cf", sizes=(2,), repeats=1)
    assert "flips" not in found
    dense, kept = np.asarray(scores), np.delete(np.arange(count), [0, 5])
    assert np.shape(gone) == (7, count)
    for t, masks in enumerate(
        zip(gone[1:3], gone[3:5], gone[5:7], strict=True)
    ):  # whose class is t
        top, random, same = (np.setdiff1d(np.flatnonzero(mask), [0, 5]) for mask in masks)
        assert set(top) == set(kept[np.argsort(-dense[t])[:2]])
        assert len(random) == len(same) == 2
        np.testing.assert_array_equal(same % 2, [t, t])
    for mask in gone:  # what is masked is in no model
        assert mask[[0, 5]].all()
    np.testing.assert_array_equal(np.flatnonzero(gone[0]), [0, 5])


def test_samples_that_are_named_are_those_that_are_missing(tmp_path: Path) -> None:
    """The lists, the trainer and its outputs count the stored rows, masked or not, on both sides."""
    weights = np.random.default_rng(1).normal(size=(9, 5))
    store = ts.FeatureStore.create(tmp_path / "s.zarr", projection=ts.ProjectionSpec("identity"))
    # Scores are the weights: grad-dot with the features of one-hot targets.
    store.write_split(0, "train", weights)
    store.write_split(0, "test", np.eye(5))
    store.mask("train", [1, 4])
    store.mask("test", [0, 3])
    scores = ts.grad_dot_scores(store, of="output")
    assert scores.shape == (3, 7)

    def trainer(subsets: Any, _seeds: Any) -> Retrained:
        return Retrained((subsets @ weights).astype(np.float32))

    options: Any = {"sizes": (2,), "repeats": 1}
    found = counterfactual(scores, trainer, store, "cf", **options)
    lists = ts.top_k(scores, 2)["position"].values
    wanted = [weights[rows, t].sum() for rows, t in zip(lists, [1, 2, 4], strict=True)]
    np.testing.assert_allclose(found["change"].sel(removal="top", size=2), wanted, rtol=1e-5)
    # A selection is of the same stored rows.
    some = scores.isel(target=[2, 0], train=[6, 0, 2, 3])
    found = counterfactual(some, trainer, store, "some", **options)
    lists = ts.top_k(some, 2)["position"].values
    assert set(lists.ravel()) <= {8, 0, 3, 5}
    wanted = [weights[rows, t].sum() for rows, t in zip(lists, [4, 1], strict=True)]
    np.testing.assert_allclose(found["change"].sel(removal="top", size=2), wanted, rtol=1e-5)
    # A trainer may know the targets that are left alone.
    few = counterfactual(
        scores, lambda s, _: Retrained((s @ weights[:, [1, 2, 4]]).astype(np.float32)), store, "few",
        **options,
    )  # fmt: skip
    np.testing.assert_allclose(
        few["change"], counterfactual(scores, trainer, store, "cf", **options)["change"], rtol=1e-5
    )


def test_outputs_for_other_targets_are_refused_with_the_first_models(place: Path) -> None:
    calls = []

    def other(subsets: Any, seeds: Any) -> Retrained:
        calls.append(len(seeds))
        return Retrained(np.zeros((len(subsets), TARGETS + 1), np.float32))

    with pytest.raises(TrakStoreError, match="are of 5 targets: needed 4"):
        counterfactual(WEIGHTS.T, other, place, "cf", sizes=(2,), at_once=3)
    assert calls == [3]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"sizes": (30,)}, r"sizes must be in 1\.\.29"),
        ({"sizes": ()}, "sizes"),
        ({"targets": [4]}, r"positions in 0\.\.3"),
        ({"sizes": (11,), "labels": LABELS}, "10 train rows"),
        ({"sizes": (2,), "labels": (LABELS[0][:5], LABELS[1])}, "labels of these lengths"),
    ],
)
def test_bad_use(place: Path, options: Any, error: str) -> None:
    with pytest.raises(TrakStoreError, match=error):
        counterfactual(WEIGHTS.T, linear, place, "cf", **options)

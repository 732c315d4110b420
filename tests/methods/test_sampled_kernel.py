"""Scores whose kernel is of rows with drawn labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import trakstore as ts
from trakstore.errors import IncompleteError, NotFoundError, SpecMismatchError, TrakStoreError
from trakstore.features import Job, featurize_job
from trakstore.kernels.solvers import Damping
from trakstore.methods.by_name import scores_by_name
from trakstore.methods.influence import influence_scores
from trakstore.methods.trak import trak_scores
from trakstore.storage.backends.read_only import ReadOnlyLocation

DRAWS = 3


@pytest.fixture
def drawn(columns: Any) -> Any:
    """The columns with three draws of each train row."""
    rng = np.random.default_rng(8)
    for epoch in (0, "final"):
        columns[epoch, "train~sampled"] = {
            # Gradients of the later epoch are longer, as they are in trainings.
            "features": rng.normal(0, 1 + 2 * (epoch == "final"), (60 * DRAWS, 12)).astype(
                np.float32
            ),
            "out_to_loss": rng.uniform(size=60 * DRAWS).astype(np.float32),
            "ids": [f"{row}~{draw}" for row in range(60) for draw in range(DRAWS)],
        }
    return columns


def kernel(columns: Any, epoch: Any, kept: Any = None) -> Any:
    """K = Σ q²·φφᵀ / draws and tr(K)/n."""
    given = columns[epoch, "train~sampled"]
    g = given["features"].astype(np.float64) * given["out_to_loss"][:, None]
    g = g if kept is None else g.reshape(60, DRAWS, -1)[kept].reshape(-1, 12)
    k = g.T @ g / DRAWS
    return k, np.trace(k) / (len(g) / DRAWS)


def inverse(columns: Any, epoch: Any, c: float, kept: Any = None) -> Any:
    """(K + λI)⁻¹ with λ = c·tr(K)/n."""
    k, mean_square = kernel(columns, epoch, kept)
    return np.linalg.inv(k + c * mean_square * np.eye(12))


def side(columns: Any, epoch: Any, split: str, loss: bool) -> Any:
    given = columns[epoch, split]
    q = given["out_to_loss"][:, None] if loss else 1.0
    return given["features"].astype(np.float64) * q


def expected(columns: Any, c: float, of_loss: bool, kept: Any = None) -> Any:
    parts = [
        side(columns, e, "test", of_loss)
        @ inverse(columns, e, c, kept)
        @ side(columns, e, "train", True).T
        for e in (0, "final")
    ]
    lengths = [np.sqrt(kernel(columns, e, kept)[1]) for e in (0, "final")]
    return np.average(parts, axis=0, weights=1 / np.array(lengths))


def assert_close(scores: Any, wanted: Any) -> None:
    np.testing.assert_allclose(np.asarray(scores), wanted, rtol=2e-4, atol=2e-5 * wanted.std())


def test_a_store_that_was_reached_another_way_has_the_same_kernel(
    drawn: Any, store_of: Any
) -> None:
    store = store_of(drawn)
    other = replace(store, location=ReadOnlyLocation.of(store.location))
    np.testing.assert_array_equal(np.asarray(trak_scores(other)), np.asarray(trak_scores(store)))
    top = ts.top_k(trak_scores(store).isel(target=[2]), 4)
    found = ts.Query(store).ask(target="@2", k=4).proponents
    assert [one.id for one in found] == top["train"].values[0].tolist()
    assert [one.score for one in found] == top["score"].values[0].tolist()


@pytest.mark.parametrize(("method", "of_loss"), [(trak_scores, False), (influence_scores, True)])
@pytest.mark.parametrize("c", [None, 0.05, 1.0])
def test_scores_are_the_dense_formula(
    drawn: Any, store_of: Any, method: Any, of_loss: bool, c: float | None
) -> None:
    scores = method(store_of(drawn), damping=c)
    assert_close(scores, expected(drawn, 0.1 if c is None else c, of_loss))


def test_absolute_damping_is_added_to_the_mean_over_draws(drawn: Any, store_of: Any) -> None:
    store, lam = store_of(drawn), 0.7
    g = side(drawn, 0, "train~sampled", True)
    wanted = (
        side(drawn, 0, "test", False)
        @ np.linalg.inv(g.T @ g / DRAWS + lam * np.eye(12))
        @ side(drawn, 0, "train", True).T
    )
    assert_close(trak_scores(store, epochs=0, damping=Damping(absolute=lam)), wanted)


def test_epochs_weigh_alike_where_lambda_is_given(drawn: Any, store_of: Any) -> None:
    store = store_of(drawn)
    for damping in (Damping(absolute=0.7), 0.0):
        each = [np.asarray(trak_scores(store, epochs=e, damping=damping)) for e in (0, "final")]
        assert_close(trak_scores(store, damping=damping), np.mean(each, axis=0))


def test_one_epoch_of_several_has_its_own_scores(drawn: Any, store_of: Any) -> None:
    store = store_of(drawn)
    of_both, alone = trak_scores(store).epoch("final"), trak_scores(store, epochs="final")
    np.testing.assert_array_equal(np.asarray(of_both), np.asarray(alone))


def test_the_kernel_of_train_rows_is_asked_for(drawn: Any, columns: Any, store_of: Any) -> None:
    store = store_of(drawn)
    alone = store_of({key: one for key, one in columns.items() if key[1] != "train~sampled"})
    for asked in ({"kernel": "train"}, {"temperature": None}):
        np.testing.assert_array_equal(trak_scores(store, **asked), trak_scores(alone))
    np.testing.assert_array_equal(
        influence_scores(store, hessian="loss"), influence_scores(alone, hessian="loss")
    )
    sampled = scores_by_name("trak", store, kernel="sampled")
    np.testing.assert_array_equal(sampled, trak_scores(store))


def test_a_store_of_margins_keeps_the_kernel_of_train_rows(tmp_path: Path) -> None:
    model = torch.nn.Linear(5, 3)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 5, generator=generator)
    data = list(zip(x, torch.arange(30) % 3, strict=True))
    for output, taken in (("margin", False), ("cross_entropy", True)):
        job = Job(model, {"train": data, "test": data[:4]}, output=output, sampled=2)
        featurize_job(job, tmp_path / output, progress=False)
        store = ts.open_store(tmp_path / output)
        default = trak_scores(store)
        wanted = trak_scores(store, kernel="sampled" if taken else "train")
        np.testing.assert_array_equal(default, wanted)
        assert (
            np.asarray(trak_scores(store, kernel="train")) != np.asarray(default)
        ).any() == taken


def test_masked_train_rows_leave_the_sampled_kernel(drawn: Any, store_of: Any) -> None:
    store = store_of(drawn)
    store.mask("train", [3, 17])
    kept = np.setdiff1d(np.arange(60), [3, 17])
    assert_close(trak_scores(store), expected(drawn, 0.1, False, kept)[:, kept])
    assert_close(trak_scores(store), expected(drawn, 0.1, False, kept)[:, kept])


def test_sampled_kernels_that_cannot_be_had(drawn: Any, store_of: Any) -> None:
    store = store_of(drawn)
    with pytest.raises(
        TrakStoreError, match="kernel must be 'train', 'sampled' or None, got 'all'"
    ):
        trak_scores(store, kernel="all")  # type: ignore[arg-type]
    with pytest.raises(TrakStoreError, match="a sampled kernel has no temperature, got 2"):
        trak_scores(store, kernel="sampled", temperature=2)
    with pytest.raises(
        TrakStoreError, match="kernel= is for trak and influence, got the method 'tracin'"
    ):
        scores_by_name("tracin", store, kernel="train")
    with pytest.raises(IncompleteError, match="train~sampled at epoch 0 has"):
        trak_scores(store_of(drawn, (0, "train~sampled")), kernel="sampled")
    some = {key: one for key, one in drawn.items() if key != ("final", "train~sampled")}
    with pytest.raises(NotFoundError, match="train~sampled"):
        trak_scores(store_of(some), kernel="sampled")
    one = {k: {n: v[:-1] for n, v in c.items()} for k, c in drawn.items() if "~" in k[1]}
    with pytest.raises(SpecMismatchError, match="has 179 rows"):
        trak_scores(store_of({**drawn, **one}))
    with pytest.raises(NotFoundError, match="train~sampled"):
        trak_scores(store_of({k: c for k, c in drawn.items() if "~" not in k[1]}), kernel="sampled")


def test_sampled_rows_that_are_not_whole_everywhere_are_not_taken_unasked(
    drawn: Any, store_of: Any, caplog: pytest.LogCaptureFixture
) -> None:
    alone = trak_scores(store_of({k: c for k, c in drawn.items() if "~" not in k[1]}))
    some = store_of({key: one for key, one in drawn.items() if key != ("final", "train~sampled")})
    lacking = store_of(drawn, (0, "train~sampled"))
    for store, epoch in ((some, "final"), (lacking, "0")):
        caplog.clear()
        np.testing.assert_array_equal(trak_scores(store), alone)
        assert f"train~sampled is not whole at the epochs {epoch}" in caplog.text
    # At the epochs that have them they are taken.
    only = trak_scores(some, epochs=0)
    g = side(drawn, 0, "test", False) @ inverse(drawn, 0, 0.1) @ side(drawn, 0, "train", True).T
    assert_close(only, g)


def test_a_split_of_drawn_labels_is_a_split_of_the_store(drawn: Any, store_of: Any) -> None:
    store = store_of(drawn)
    assert store.splits == ("test", "train", "train~sampled")
    assert not ts.verify_store(store.location).findings
    store.drop(0, "train~sampled")
    assert store.splits_of(0) == ("test", "train")

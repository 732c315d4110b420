"""Scores that are too small for float32 are refused; those that are zero, or large enough, are not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import trakstore as ts
from trakstore.errors import NumericsError
from trakstore.passes.rows import ArrayRows
from trakstore.scores.factored import Scores
from trakstore.scores.parts import Part

RNG = np.random.default_rng(0)
TARGET, TRAIN = (RNG.normal(size=(rows, 8)).astype(np.float32) for rows in (4, 40))


def scores_of(*parts: tuple[Any, Any, Any, Any]) -> Scores:
    """Scores of epochs that are given as target features and scale, train features and scale."""
    made = tuple(
        Part(
            epoch,
            ArrayRows(np.asarray(target, np.float32)),
            ArrayRows(np.asarray(train, np.float32), chunk_rows=16),
            row_scale=None if row is None else ArrayRows(np.asarray(row, np.float32)),
            column_scale=None if column is None else ArrayRows(np.asarray(column, np.float32)),
        )
        for epoch, (target, row, train, column) in enumerate(parts)
    )
    ids = ArrayRows(np.arange(4)), ArrayRows(np.arange(40))
    return Scores("given", made, *ids, average="scores")


def dense(target: Any, train: Any) -> Any:
    return np.asarray(target, np.float64) @ np.asarray(train, np.float64).T


@pytest.mark.parametrize("size", [1e-20, 1e-22, 1e-24, 1e-30])
@pytest.mark.parametrize("scaled", [False, True])
def test_small_targets_of_small_train_rows_are_refused(size: float, scaled: bool) -> None:
    if scaled:  # as out_to_loss of samples that were memorised
        scores = scores_of((TARGET, np.full(4, size), TRAIN, np.full(40, size)))
    else:
        scores = scores_of((size * TARGET, None, size * TRAIN, None))
    for ask in (
        np.asarray,
        lambda one: ts.top_k(one, 3),
        lambda one: one.isel(target=[2]).block(0, 1, 0, 5),
    ):
        with pytest.raises(NumericsError, match=r"scores of target 0 are all smaller than float32"):
            ask(scores)


def test_a_product_that_is_zero_in_float32_already_is_refused() -> None:
    tiny = np.full(4, 1e-30)
    with pytest.raises(NumericsError, match="scores of target 0 are all smaller"):
        np.asarray(scores_of((1e-30 * TARGET, tiny, TRAIN, None)))


def test_one_such_target_is_named() -> None:
    targets = TARGET.copy()
    targets[2] *= np.float32(1e-25)
    with pytest.raises(NumericsError, match="scores of target 2 are all smaller"):
        np.asarray(scores_of((targets, None, 1e-15 * TRAIN, None)))


def test_small_targets_of_one_large_train_row_are_right() -> None:
    train = TRAIN * np.float32(1e-22)
    train[39] = TRAIN[39]
    got = np.asarray(scores_of((1e-25 * TARGET, None, train, None)))
    target = (1e-25 * TARGET).astype(np.float32)
    np.testing.assert_allclose(got[:, 39], dense(target, train)[:, 39], rtol=1e-5)


def test_an_epoch_that_is_small_beside_another_is_right() -> None:
    tiny = (TARGET, np.full(4, 1e-40), TRAIN, np.full(40, 1e-30))
    got = np.asarray(scores_of(tiny, (TARGET, None, TRAIN, None)))
    np.testing.assert_allclose(got, dense(TARGET, TRAIN) / 2, rtol=1e-5, atol=1e-6)


def test_zeros_are_zeros() -> None:
    targets = TARGET.copy()
    targets[1] = 0
    got = np.asarray(scores_of((targets, None, TRAIN, None)))
    assert not got[1].any() and got[0].all()
    memorised = scores_of((1e-20 * TARGET, np.zeros(4), 1e-20 * TRAIN, None))
    assert not np.asarray(memorised).any()
    assert not np.asarray(scores_of((1e-20 * TARGET, None, TRAIN, np.zeros(40)))).any()


def test_scores_above_the_limit_have_their_digits() -> None:
    """The smallest that are taken: their products are 100 times above the end of normal numbers."""
    target, train = (np.float32(1.5e-18) * one for one in (TARGET, TRAIN))
    got = np.asarray(scores_of((target, None, train, None)))
    wanted = dense(target, train)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("method", [ts.tracin_scores, ts.grad_dot_scores])
def test_stored_rows_of_memorised_samples(method: Any, tmp_path: Any) -> None:
    store = ts.FeatureStore.create(tmp_path / "s", projection=ts.ProjectionSpec("sjlt", dim=8))
    for split, features in (("train", TRAIN), ("test", TARGET)):
        q = np.full(len(features), 1e-24, np.float32)
        store.write_split(0, split, features, out_to_loss=q, learning_rate=0.1)
    with pytest.raises(NumericsError, match="use of='output'"):
        np.asarray(method(store))
    got = np.asarray(ts.grad_dot_scores(store, of="output"))
    np.testing.assert_allclose(got, dense(TARGET, TRAIN), rtol=1e-4, atol=1e-5)

"""Each target's own soft threshold: the same score whatever is selected, however it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import trakstore as ts
from trakstore.scores import own_thresholds
from trakstore.scores.factored import Scores

Make = Callable[..., tuple[Scores, Any]]


def shrunk(dense: np.ndarray[Any, Any], rows: Any = slice(None)) -> np.ndarray[Any, Any]:
    """Scores less a threshold of each target, by its definition."""
    limits = np.median(np.abs(dense[:, rows]), axis=1, keepdims=True) / 0.6745
    return np.sign(dense) * np.maximum(np.abs(dense) - limits, 0)


@pytest.mark.parametrize("average", ["factors", "scores"])
def test_selections_and_epochs_keep_the_thresholds_of_all_train_rows(
    make_scores: Make, average: str
) -> None:
    plain, _ = make_scores(n=333, average=average)
    scores = replace(plain, soft_threshold="auto")
    wanted = shrunk(np.asarray(plain))
    np.testing.assert_allclose(np.asarray(scores), wanted, rtol=1e-5, atol=1e-5)
    some = scores.isel(target=[4, 1], train=[7, 300, 8])
    np.testing.assert_allclose(some, wanted[[4, 1]][:, [7, 300, 8]], rtol=1e-5, atol=1e-5)
    one = scores.epochs[-1]
    alone = shrunk(np.asarray(plain.epoch(one)))
    np.testing.assert_allclose(np.asarray(scores.epoch(one)), alone, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(scores.to_xarray(), wanted, rtol=1e-5, atol=1e-5)


def test_lists_have_the_order_of_scores_without_them(make_scores: Make) -> None:
    plain, _ = make_scores(n=333)
    scores = replace(plain, soft_threshold="auto")
    top, without = ts.top_k(scores, 20), ts.top_k(plain, 20)
    np.testing.assert_array_equal(top["position"], without["position"])
    limits = (without["score"] - top["score"]).values
    assert (limits > 0).all() and np.ptp(limits, axis=1).max() < 1e-4
    assert np.ptp(limits[:, 0]) > 0.01, "each target has its own"
    targets, columns = np.repeat(np.arange(9), 20), top["position"].values.ravel()
    entries = scores.window(0, 9).entries(0, 333, targets, columns)
    np.testing.assert_allclose(entries, top["score"].values.ravel(), rtol=1e-4, atol=1e-4)


def test_many_rows_are_sampled_in_places_all_over_the_split(
    make_scores: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_thresholds, "PLACES", 5)
    monkeypatch.setattr(own_thresholds, "ROWS", 10)
    monkeypatch.setattr(own_thresholds, "TARGETS", 4)
    plain, _ = make_scores(n=333)
    scores = replace(plain, soft_threshold="auto")
    rows = [start + at for start in (0, 80, 161, 242, 323) for at in range(10)]
    wanted = shrunk(np.asarray(plain), rows)
    np.testing.assert_allclose(np.asarray(scores), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [0, 1, 4096, 4097, 10**6])
def test_sampled_rows_are_all_or_as_many_as_wanted(rows: int) -> None:
    found = np.asarray(own_thresholds.sampled_rows(rows))
    assert len(found) == min(rows, 4096) and (np.diff(found) > 0).all()
    assert rows == 0 or (found[0] == 0 and found[-1] == rows - 1)

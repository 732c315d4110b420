"""Lists in two passes: their scores are exact, and what they miss is said."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from trakstore.errors import MemoryLimitError, NumericsError, TrakStoreError
from trakstore.passes.rows import ArrayRows
from trakstore.scores import two_pass
from trakstore.scores.factored import Scores
from trakstore.scores.parts import Part
from trakstore.scores.top_k import top_k
from trakstore.scores.two_pass import approximate_top_k
from trakstore.scores.window_plans import WindowPlan

ORDERS = ["largest", "smallest", "magnitude"]


def decaying(m: int = 40, n: int = 3000, k: int = 48, power: float = 1.0) -> Scores:
    """Features whose directions have fewer and fewer of the norm, as gradients have."""
    rng = np.random.default_rng(0)
    spectrum = (np.arange(1, k + 1) ** -power).astype(np.float32)
    rows = (rng.standard_normal((size, k)).astype(np.float32) * spectrum for size in (m, n))
    target, train = (ArrayRows(one, 128) for one in rows)
    return Scores(
        "test", (Part(0, target, train),), ArrayRows(np.arange(m)), ArrayRows(np.arange(n))
    )


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("average", ["factors", "scores"])
def test_scores_are_exact_and_in_order(make_scores, order, average):
    scores, _ = make_scores(average=average)
    dense = np.asarray(scores)
    found = approximate_top_k(scores, 7, columns=2, candidates=20, order=order)
    position = found["position"].values
    np.testing.assert_allclose(found["score"], np.take_along_axis(dense, position, 1), rtol=1e-5)
    key = {"largest": dense, "smallest": -dense, "magnitude": np.abs(dense)}[order]
    assert (np.diff(np.take_along_axis(key, position, 1)) <= 0).all()
    assert all(len(set(row)) == 7 for row in position.tolist())
    np.testing.assert_array_equal(found["train"], 10 * position)
    assert found.attrs["order"] == order and found.attrs["candidates"] == 20


@pytest.mark.parametrize("order", ORDERS)
def test_it_is_the_exact_answer_where_all_are_candidates(make_scores, order):
    scores, _ = make_scores(soft_threshold=0.5)
    exact = top_k(scores, 9, order=order)
    found = approximate_top_k(scores, 9, columns=1, candidates=101, order=order, checked=100)
    np.testing.assert_array_equal(found["position"], exact["position"])
    np.testing.assert_allclose(found["score"], exact["score"], rtol=1e-5, atol=1e-6)
    assert found.attrs["recall"] == 1 and found.attrs["checked"] == 9


def test_recall_is_what_it_says_and_rises_with_columns():
    scores = decaying(power=0.5)
    exact = top_k(scores, 10)["position"].values
    recalls = []
    for columns in (1, 4, 16, 48):
        found = approximate_top_k(scores, 10, columns=columns, candidates=30, checked=40)
        pairs = zip(exact, found["position"].values, strict=True)
        true = np.mean([len(set(a) & set(b)) / 10 for a, b in pairs])
        assert found.attrs["recall"] == pytest.approx(true)
        recalls.append(true)
    assert recalls == sorted(recalls) and recalls[0] < 0.5 < 0.95 < recalls[2] < recalls[3] == 1
    some = approximate_top_k(scores, 10, columns=4, candidates=30, checked=8)
    assert some.attrs["recall"] == pytest.approx(recalls[1], abs=0.25)
    assert np.isnan(approximate_top_k(scores, 10, checked=0).attrs["recall"])


def test_directions_are_better_than_columns_as_they_are():
    """A rotation of the features changes nothing but rounding."""
    scores = decaying(power=2.0)
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((48, 48)))[0].astype(np.float32)
    (part,) = scores.parts
    rows = (ArrayRows(one.array @ turn, 128) for one in (part.target, part.train))
    turned = Scores("test", (Part(0, *rows),), scores.target_ids, scores.train_ids)
    found = approximate_top_k(turned, 10, columns=6, candidates=40, checked=40)
    assert found.attrs["recall"] > 0.95


def test_windows_of_targets_and_one_seed(make_scores, monkeypatch):
    scores, _ = make_scores(m=60, n=400)
    whole = approximate_top_k(scores, 5, columns=6, candidates=50)
    again = approximate_top_k(scores, 5, columns=6, candidates=50)
    xr.testing.assert_identical(whole, again)
    with pytest.raises(MemoryLimitError):
        approximate_top_k(scores, 5, memory_limit="10kB")
    exact = top_k(scores, 5)
    monkeypatch.setattr(two_pass, "plan_top_k", lambda *_: WindowPlan(25, 2))
    windows = approximate_top_k(scores, 5, columns=6, candidates=400, checked=40)
    np.testing.assert_array_equal(windows["position"], exact["position"])
    assert windows.attrs["recall"] == 1


def test_refusals(make_scores):
    scores, arrays = make_scores()
    for options in ({"columns": 0}, {"candidates": 4}, {"candidates": 102}, {"checked": -1}):
        with pytest.raises(TrakStoreError, match="needed columns"):
            approximate_top_k(scores, 5, **options)
    with pytest.raises(TrakStoreError, match="k must be in"):
        approximate_top_k(scores, 102)
    with pytest.raises(TrakStoreError, match="order must be one of"):
        approximate_top_k(scores, 2, order="first")
    arrays[0][1][50] = np.nan
    with pytest.raises(NumericsError, match="train row 50 is nan"):
        approximate_top_k(scores, 2)

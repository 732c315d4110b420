"""Changes of influence: their numbers, their p-values without a change, what is planted among drift."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy.stats import kstest, rankdata

from trakstore.analysis.changepoint import change_point
from trakstore.analysis.transition import Transition, transition
from trakstore.errors import MemoryLimitError, SpecMismatchError, TrakStoreError
from trakstore.passes.rows import ArrayRows
from trakstore.scores.factored import Scores
from trakstore.scores.moments import row_moments
from trakstore.scores.parts import Part


def of(matrix: Any) -> Scores:
    """Scores that are this matrix (m, n)."""
    matrix = np.asarray(matrix, dtype=np.float32)
    m, n = matrix.shape
    part = Part(0, ArrayRows(np.eye(m, dtype=np.float32)), ArrayRows(matrix.T.copy(), 16))
    return Scores("given", (part,), ArrayRows(np.arange(m)), ArrayRows(np.arange(n) * 10, 16))


def noise(rng: Any, base: Any, scale: float = 1.0) -> Scores:
    return of(scale * (base + rng.normal(size=base.shape)))


def scaled(matrix: Any, scale: str) -> Any:
    matrix = np.asarray(matrix, dtype=np.float64)
    if scale == "standard":
        return (matrix - matrix.mean(1, keepdims=True)) / matrix.std(1, keepdims=True)
    if scale == "rank":
        return (rankdata(matrix, axis=1) - 1) / (matrix.shape[1] - 1)
    return matrix


def test_moments() -> None:
    matrix = np.random.default_rng(0).normal(3, 2, size=(5, 100)).astype(np.float32)
    mean, deviation = row_moments(of(matrix))
    np.testing.assert_allclose(mean, matrix.mean(1, dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(deviation, matrix.std(1, dtype=np.float64), rtol=1e-5)


@pytest.mark.parametrize("scale", ["standard", "rank", "raw"])
def test_every_number(scale: Any) -> None:
    rng = np.random.default_rng(1)
    base = rng.normal(size=(6, 80))
    a, b, c, d = (noise(rng, base, s) for s in (1, 5, 1, 1))
    found = transition(a, b, [(c, d), (a, c)], scale=scale, k=4, resamples=400)
    change = (scaled(b, scale) - scaled(a, scale)).mean(0)
    np.testing.assert_allclose(found.changes["change"], change, rtol=1e-4, atol=1e-5)
    null = np.concatenate(
        [(scaled(y, scale) - scaled(x, scale)).mean(0) for x, y in ((c, d), (a, c))]
    )
    p = [(1 + (np.abs(null) >= abs(one) * (1 - 1e-6)).sum()) / 161 for one in change]
    np.testing.assert_allclose(found.changes["p"], p, atol=1.1 / 161)
    np.testing.assert_array_equal(found.gained["position"], np.argsort(-change)[:4])
    np.testing.assert_array_equal(found.lost["position"], np.argsort(change)[:4])
    np.testing.assert_array_equal(found.lost["train"], 10 * np.argsort(change)[:4])
    each = (scaled(b, scale) - scaled(a, scale))[:, found.gained["position"].values]
    spread = each.std(0) / np.sqrt(6)
    width = (found.gained["high"] - found.gained["low"]).values
    np.testing.assert_allclose(width, 2 * 1.96 * spread, rtol=0.35)
    low, middle, high = (found.gained[name].values for name in ("low", "change", "high"))
    assert ((low <= middle) & (middle <= high)).all()


def test_false_discovery_rates_are_those_of_benjamini_and_hochberg() -> None:
    from scipy.stats import false_discovery_control

    rng = np.random.default_rng(2)
    base = rng.normal(size=(4, 60))
    found = transition(
        *(noise(rng, base) for _ in range(2)), [(noise(rng, base), noise(rng, base))]
    )
    np.testing.assert_allclose(
        found.changes["q"], false_discovery_control(found.changes["p"].values)
    )
    assert found.error_rate("gained") == found.gained["q"].values.max()


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["standard", "rank"])
def test_p_values_are_uniform_where_nothing_happened(scale: Any) -> None:
    """200 stores without a transition: one train sample of each."""
    p = []
    for seed in range(200):
        rng = np.random.default_rng([3, seed])
        base = rng.normal(size=(5, 60))
        epochs = [noise(rng, base, s) for s in (1, 1, 0.2, 0.2, 0.1, 0.1)]  # the scale drifts
        found = transition(
            epochs[2], epochs[3], [tuple(epochs[:2]), tuple(epochs[4:])], scale=scale
        )
        p.append(float(found.changes["p"][seed % 60]))
    assert kstest(p, "uniform").pvalue > 0.01
    assert 0.02 <= np.mean(np.array(p) < 0.1) <= 0.2


def test_planted_samples_are_found_among_drift_and_few_others() -> None:
    planted, missed, wrong, said = np.arange(7, 300, 30), [], [], []
    for seed in range(20):
        rng = np.random.default_rng([4, seed])
        base = rng.normal(size=(20, 300))
        later = base.copy()
        later[:, planted] += 2.5
        epochs = [noise(rng, base, s) for s in (3, 3, 2)] + [
            noise(rng, later, s) for s in (0.05, 0.04)
        ]
        null = [(epochs[0], epochs[1]), (epochs[3], epochs[4])]
        found = transition(epochs[2], epochs[3], null, k=10)
        sure = np.flatnonzero((found.changes["q"] <= 0.1) & (found.changes["change"] > 0))
        missed.append(len(np.setdiff1d(planted, sure)))
        wrong.append(len(np.setdiff1d(sure, planted)) / max(1, len(sure)))
        said.append(found.error_rate("gained"))
        raw = transition(epochs[2], epochs[3], null, k=10, scale="raw")
        assert len(np.intersect1d(raw.gained["position"], planted)) < 10, "drift hides them"
    assert np.mean(missed) < 0.5
    assert np.mean(wrong) <= 0.1 + 0.03  # the rate that was asked for
    assert np.mean(said) <= 0.1


def test_without_a_null_there_are_no_p_values() -> None:
    rng = np.random.default_rng(5)
    found = transition(of(rng.normal(size=(3, 20))), of(rng.normal(size=(3, 20))))
    assert np.isnan(found.changes["p"]).all() and np.isnan(found.error_rate("lost"))


def test_the_transition_is_not_its_own_null() -> None:
    rng = np.random.default_rng(8)
    a, b, c = (of(rng.normal(size=(3, 20))) for _ in range(3))
    for pair in ((a, b), (b, a)):
        with pytest.raises(TrakStoreError, match="pair 2 of the null is the transition itself"):
            transition(a, b, [(b, c), pair])
    with pytest.raises(TrakStoreError, match="pair 1 of the null has the same scores twice"):
        transition(a, b, [(c, c)])


@pytest.mark.parametrize("scale", ["standard", "rank", "raw"])
def test_one_target_has_no_interval(scale: Any) -> None:
    rng = np.random.default_rng(9)
    found = transition(*(of(rng.normal(size=(1, 20))) for _ in range(2)), scale=scale, k=3)
    for listed in (found.gained, found.lost):
        assert np.isnan(listed["low"]).all() and np.isnan(listed["high"]).all()
        assert np.isfinite(listed["change"]).all()


def test_refusals() -> None:
    rng = np.random.default_rng(6)
    a = of(rng.normal(size=(3, 20)))
    with pytest.raises(TrakStoreError, match="the same shape"):
        transition(a, of(rng.normal(size=(3, 21))))
    with pytest.raises(TrakStoreError, match="scale must be"):
        transition(a, a, scale="log")  # type: ignore[arg-type]
    with pytest.raises(TrakStoreError, match="k must be"):
        transition(a, a, k=21)
    with pytest.raises(MemoryLimitError, match="20 train samples take"):
        transition(a, a, memory_limit=2400)
    with pytest.raises(TrakStoreError, match="all scores of target 1 are equal"):
        transition(a, of([[1.0] * 19 + [2.0], [3.0] * 20, [0.0] * 19 + [1.0]]))


def test_a_change_point_and_how_sure_it_is() -> None:
    rng = np.random.default_rng(7)
    inside, wide = 0, []
    for _ in range(200):
        at = int(rng.integers(4, 26))
        y = rng.normal(size=30) + 2.0 * (np.arange(30) >= at)
        found = change_point(y)
        inside += found.low <= at <= found.high
        wide.append(found.high - found.low)
        assert found.probability.sum() == pytest.approx(1)
    assert inside / 200 > 0.9  # of 0.95; whole values, so a little more or less
    assert np.mean(wide) < 8
    calm = [change_point(rng.normal(size=30)).evidence for _ in range(50)]
    assert np.median(calm) < 20 < change_point([0.0, 0.1, 0, 0.1, 5, 5.1, 5, 5.1, 5]).evidence
    with pytest.raises(TrakStoreError, match="5 or more finite"):
        change_point([1, 2, 3])


def test_a_side_that_there_is_not() -> None:
    scores = noise(np.random.default_rng(3), np.zeros((3, 20)))
    with pytest.raises(TrakStoreError, match="side must be 'gained' or 'lost', got 'x'"):
        transition(scores, scores, k=2).error_rate("x")  # type: ignore[arg-type]


def test_it_prints_in_a_line() -> None:
    gained, lost = (xr.Dataset({"train": ("rank", ids)}) for ids in (np.arange(9), ["a", "b"]))
    changes = xr.Dataset({"change": ("train", np.zeros(1234))})
    shown = repr(Transition(changes, gained, lost, "rank", 2))
    assert shown == (
        "<Transition of 1,234 samples, rank, 2 null pairs; gained 0, 1, 2, 3, 4; lost a, b>"
    )


def test_scores_of_other_samples_have_no_transition() -> None:
    rng = np.random.default_rng(5)
    a, b = noise(rng, np.zeros((3, 6))), noise(rng, np.zeros((3, 6)))
    turned = replace(b, train_ids=ArrayRows(np.array([0, 10, 30, 20, 40, 50])))
    with pytest.raises(
        SpecMismatchError, match=r"scores 2 have train row 2 of sample 30, .* train 20"
    ):
        transition(a, turned, k=2)
    others = replace(b, target_ids=ArrayRows(np.array([0, 1, 7])))
    with pytest.raises(
        SpecMismatchError, match=r"scores 4 have target row 2 of sample 7, .* target 2"
    ):
        transition(a, b, [(a, others)], k=2)

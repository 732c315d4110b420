from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from trakstore.errors import TrakStoreError
from trakstore.evaluation.wrong_labels import detection, plant_noise


def test_against_scikit_learn_with_ties(rng: np.random.Generator) -> None:
    wrong = rng.random(300) < 0.1
    scores = np.round(rng.normal(size=300) + wrong, 1)
    found = detection(scores, wrong)
    assert found.auc == pytest.approx(roc_auc_score(wrong, scores))
    assert found.low < found.auc < found.high
    assert (found.found, found.samples) == (int(wrong.sum()), 300)


def test_by_hand() -> None:
    found = detection([5.0, 4, 3, 2, 1], [True, False, True, False, False])
    assert found.auc == pytest.approx(5 / 6)  # of six pairs, one is the wrong way round
    assert found.precision == 0.5


def test_equal_scores_have_no_order() -> None:
    """Of two places, one is for three samples that tie, of which one is wrong."""
    scores, wrong = np.array([9.0, 5, 5, 5, 1]), np.array([True, True, False, False, False])
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(5)
        assert detection(scores[order], wrong[order]).precision == pytest.approx((1 + 1 / 3) / 2)
    assert detection(np.zeros(10), np.arange(10) < 3).precision == pytest.approx(0.3)
    assert detection(np.zeros(10), np.arange(10) >= 7).precision == pytest.approx(0.3)


def test_the_interval_holds_the_truth() -> None:
    """Scores one standard deviation apart have an AUC of Φ(1/√2) = 0.760."""
    held = 0
    for i in range(100):
        wrong = np.arange(200) < 30
        scores = np.random.default_rng(i).normal(size=200) + wrong
        found = detection(scores, wrong, resamples=200)
        held += found.low <= 0.760 <= found.high
    assert held >= 88


def test_noise_is_planted_as_said(rng: np.random.Generator) -> None:
    labels = rng.integers(0, 10, 1000)
    noisy, wrong = plant_noise(labels, 0.1, seed=1)
    np.testing.assert_array_equal(noisy != labels, wrong)
    assert wrong.sum() == 100
    assert set(noisy) <= set(range(10))
    assert len(set(noisy[wrong] - labels[wrong])) > 9  # to any other class


@pytest.mark.parametrize(
    ("scores", "wrong"),
    [
        ([1.0, 2.0], [True, True]),
        ([1.0, 2.0], [False, False]),
        ([1.0, 2.0], [True]),
        ([1.0, np.nan], [True, False]),
        (["a", "b"], [True, False]),
        ([[1.0], [2.0, 3.0]], [True, False]),
    ],
)
def test_bad_input(scores: Any, wrong: Any) -> None:
    with pytest.raises(TrakStoreError):
        detection(scores, wrong)


@pytest.mark.parametrize("share", [0, 1, -0.1])
def test_bad_shares(share: float) -> None:
    with pytest.raises(TrakStoreError, match="share"):
        plant_noise([0, 1], share)

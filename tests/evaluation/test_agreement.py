from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from trakstore.errors import TrakStoreError
from trakstore.evaluation.agreement import stability


def test_equal_runs_agree_and_opposite_ones_do_not() -> None:
    scores = np.random.default_rng(0).normal(size=(5, 40))
    same = stability([scores, 3 * scores, scores], top_k=7)
    assert same == pytest.approx({"spearman": 1, "jaccard": 1, "rank_biased_overlap": 1})
    other = stability([scores, -scores], top_k=7)
    assert other == pytest.approx({"spearman": -1, "jaccard": 0, "rank_biased_overlap": 0})


def test_against_scipy_and_by_hand() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(4, 30)), rng.normal(size=(4, 30))
    wanted = np.mean([spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)])
    assert stability([a, b])["spearman"] == pytest.approx(wanted)
    a, b = np.array([[5.0, 4, 3, 2, 1]]), np.array([[4.0, 5, 1, 2, 3]])  # lists 0 1 2 and 1 0 4
    found = stability([a, b], top_k=3)
    assert found["jaccard"] == pytest.approx(2 / 4)
    weights = np.array([1, 0.9, 0.81])
    assert found["rank_biased_overlap"] == pytest.approx(weights @ [0, 1, 2 / 3] / weights.sum())


def test_what_cannot_be_compared() -> None:
    scores = np.zeros((2, 5))
    with pytest.raises(TrakStoreError, match="two or more runs, of one shape"):
        stability([scores])
    with pytest.raises(TrakStoreError, match="two or more runs, of one shape"):
        stability([scores, scores[:1]])
    with pytest.raises(TrakStoreError, match="top_k must be in"):
        stability([scores, scores], top_k=6)

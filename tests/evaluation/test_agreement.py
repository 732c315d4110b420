from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy.stats import spearmanr

from trakstore.errors import NumericsError, SpecMismatchError, TrakStoreError
from trakstore.evaluation.agreement import stability
from trakstore.passes.rows import ArrayRows, PositionRows, Rows
from trakstore.scores.factored import Scores
from trakstore.scores.parts import Part


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


def test_arrays_are_compared_by_the_names_of_their_dimensions() -> None:
    matrix = np.random.default_rng(3).normal(size=(12, 12))
    right = xr.DataArray(matrix, dims=("target", "train"))
    found = stability([right, xr.DataArray(matrix.T, dims=("train", "target"))], 5)
    assert found == pytest.approx({"spearman": 1, "jaccard": 1, "rank_biased_overlap": 1})
    found = stability([right[:5], right[:5].transpose()], 5)
    assert found["spearman"] == pytest.approx(1)


def test_what_cannot_be_compared() -> None:
    scores = np.zeros((2, 5))
    with pytest.raises(TrakStoreError, match="two or more runs, of one shape"):
        stability([scores])
    with pytest.raises(TrakStoreError, match="two or more runs, of one shape"):
        stability([scores, scores[:1]])
    with pytest.raises(TrakStoreError, match="top_k must be in"):
        stability([scores, scores], top_k=6)
    with pytest.raises(NumericsError, match="the score of target 1 with train row 0 is nan"):
        stability([scores, np.where([[False], [True]], np.nan, scores)], 5)


def scores_with(matrix: Any, train_ids: Rows) -> Scores:
    """Scores that are this matrix, of targets 0, 1, ... and these train rows."""
    target = np.eye(len(matrix), dtype=np.float32)
    part = Part(0, ArrayRows(target), ArrayRows(matrix.T.astype(np.float32)))
    return Scores("given", (part,), ArrayRows(np.arange(len(matrix))), train_ids)


def test_runs_over_other_samples_are_refused() -> None:
    matrix = np.random.default_rng(2).normal(size=(3, 8))
    names, order = np.array(list("abcdefgh"), dtype=np.dtypes.StringDType()), np.arange(8)[::-1]
    run, again = scores_with(matrix, ArrayRows(names)), scores_with(matrix, ArrayRows(names.copy()))
    assert stability([run, again], top_k=2)["spearman"] == pytest.approx(1)
    turned = scores_with(matrix[:, order], ArrayRows(names[order]))
    with pytest.raises(
        SpecMismatchError, match=r"scores 3 have train row 0 of sample 'h', .* 'a' there"
    ):
        stability([run, again, turned], top_k=2)
    numbered = scores_with(matrix, ArrayRows(np.arange(8)))
    with pytest.raises(
        SpecMismatchError, match=r"scores 2 have train row 0 of sample 0, .* 'a' there"
    ):
        stability([run, numbered], top_k=2)
    # Positions and plain arrays name no sample.
    unnamed = scores_with(matrix, PositionRows(8))
    assert stability([run, unnamed, matrix], top_k=2)["spearman"] == pytest.approx(1)


def test_ids_of_data_arrays_count() -> None:
    matrix, dims = np.random.default_rng(3).normal(size=(2, 4)), ("target", "train")
    runs = [
        xr.DataArray(matrix, dims=dims, coords={"train_id": ("train", ids)})
        for ids in ([1, 2, 3, 4], [1, 2, 4, 3])
    ]
    assert stability([runs[0], runs[0]], top_k=2)["jaccard"] == 1
    with pytest.raises(
        SpecMismatchError, match=r"scores 2 have train row 2 of sample 4, .* 3 there"
    ):
        stability(runs, top_k=2)


def test_a_target_of_equal_scores_counts_as_no_correlation() -> None:
    scores = np.random.default_rng(0).normal(size=(4, 30))
    flat = scores.copy()
    flat[1] = 0
    assert stability([scores, flat])["spearman"] == pytest.approx(3 / 4)


def test_runs_that_come_one_after_the_other() -> None:
    scores = np.random.default_rng(0).normal(size=(4, 30))
    assert stability(one for one in (scores, scores))["spearman"] == pytest.approx(1)  # type: ignore[arg-type]

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from trakstore.analysis.concentration import gini, participation_ratio, positive_mass
from trakstore.analysis.group_influence import class_summary, same_class_share
from trakstore.errors import MemoryLimitError, NumericsError, TrakStoreError

SCORES = np.array([[1.0, -1, 1, 1], [0, 0, 0, 5], [4, -3, 0, 1]])


def kinds() -> list[Any]:
    lazy = xr.DataArray(SCORES, dims=("target", "train")).chunk(target=2)
    return [SCORES, lazy, lazy.transpose()]


@pytest.mark.parametrize("scores", kinds(), ids=["array", "lazy", "other order"])
def test_how_many_share_the_score(scores: Any) -> None:
    np.testing.assert_allclose(participation_ratio(scores), [4, 1, 64 / 26])
    magnitudes = np.abs(SCORES)
    wanted = [
        np.abs(row[:, None] - row[None]).sum() / (2 * len(row) * row.sum()) for row in magnitudes
    ]
    np.testing.assert_allclose(gini(scores), wanted)
    np.testing.assert_allclose(positive_mass(scores, 0.25), [1 / 3, 1, 0.8])
    np.testing.assert_allclose(positive_mass(scores, 1.0), 1)


def test_own_class() -> None:
    for scores in kinds():
        share, base = same_class_share(scores, [0, 0, 1, 1], [0, 1, 1])
        np.testing.assert_allclose(share, [1 / 3, 1, 0.2])
        np.testing.assert_allclose(base, 0.5)
    with pytest.raises(TrakStoreError, match="need labels of these lengths"):
        same_class_share(SCORES, [0, 0, 1, 1], [0, 1])


class Counted:
    """A matrix that counts the targets whose scores are read."""

    def __init__(self, matrix: Any) -> None:
        self.matrix, self.shape, self.read = matrix, matrix.shape, 0

    def isel(self, target: slice) -> Any:
        self.read += target.stop - target.start
        return self.matrix[target]


def test_all_of_it_in_one_pass() -> None:
    rng = np.random.default_rng(1)
    matrix, train, target = rng.normal(size=(7, 30)), np.arange(30) % 3, np.arange(7) % 3
    counted: Any = Counted(matrix)
    found = class_summary(counted, train, target, memory_limit="2kB")  # a target at a time
    assert counted.read == 7
    share, base = same_class_share(matrix, train, target)
    wanted = (share, base, participation_ratio(matrix), gini(matrix), positive_mass(matrix, 0.1))
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other)
    with pytest.raises(TrakStoreError, match="need labels of these lengths"):
        class_summary(matrix, train, target[:3])


def test_nothing_is_nan_and_limits_hold() -> None:
    zero = np.zeros((1, 3))
    assert np.isnan(participation_ratio(zero)) and np.isnan(positive_mass(zero))
    with pytest.raises(TrakStoreError, match="share must be"):
        positive_mass(zero, 0)
    with pytest.raises(MemoryLimitError, match="scores of one target"):
        gini(np.zeros((1, 1000)), memory_limit="10kB")
    whole = np.random.default_rng(0).normal(size=(50, 100))
    np.testing.assert_allclose(gini(whole, memory_limit="8kB"), gini(whole))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_named(bad: float) -> None:
    matrix, labels = np.ones((3, 4)), (np.zeros(4), np.zeros(3))
    matrix[1, 2] = bad
    asked: list[Any] = [participation_ratio, gini, positive_mass]
    asked += [lambda scores, f=f: f(scores, *labels) for f in (class_summary, same_class_share)]
    for compute in asked:
        with pytest.raises(NumericsError, match=f"target 1 with train row 2 is {bad}"):
            compute(matrix)


@pytest.mark.parametrize("given", [None, [[1.0, 2.0]], torch.ones(1, 2)])
def test_what_is_no_matrix_of_scores(given: Any) -> None:
    said = r"needed scores of shape \(target, train\), as .* got"
    for compute in (gini, lambda one: same_class_share(one, [0, 1], [0])):
        with pytest.raises(TrakStoreError, match=said):
            compute(given)


def test_labels_that_are_nan_are_no_class_of_their_own() -> None:
    for labels in (([0, np.nan, 1], [0]), ([0, 0, 1], [np.nan])):
        with pytest.raises(TrakStoreError, match="labels are NaN for some rows"):
            same_class_share(np.ones((1, 3)), *labels)

"""Common scales for the scores of two checkpoints."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from trakstore.errors import TrakStoreError
from trakstore.passes.rows import ArrayRows, whole_column
from trakstore.scores.factored import Scores
from trakstore.scores.moments import row_moments
from trakstore.scores.parts import Part
from trakstore.scores.sums import group_scores
from trakstore.scores.windows import target_windows

F64 = NDArray[np.float64]
Limit = int | str | None
_RANKED = 64  # bytes for each score of a window: as computed, as float64, and scratch of ranking


class Scaled(ABC):
    """Scores (m, n), scaled target by target."""

    @property
    @abstractmethod
    def mean(self) -> F64:
        """Mean over targets, shape (n,); computed once."""

    @abstractmethod
    def at(self, columns: NDArray[np.int64]) -> F64:
        """Compute the scaled scores of some train rows, shape (m, c)."""


class _Linear(Scaled):
    """Scores τ · factor − shift, with numbers for each target, shapes (m,)."""

    def __init__(self, scores: Scores, limit: Limit, shift: F64, factor: F64) -> None:
        self._scores, self._limit, self._shift, self._factor = scores, limit, shift, factor

    @cached_property
    def mean(self) -> F64:
        """See :attr:`Scaled.mean`."""
        # The mean of scaled scores is linear in the targets: it is the score of one target whose
        # features are the mean of the scaled targets' features. So one target is computed instead of m.
        rows = self._scores.shape[0]
        parts = tuple(_weighted(part, self._factor / rows) for part in self._scores.parts)
        weighted = replace(self._scores, parts=parts)
        one = group_scores(weighted, targets=np.zeros(rows), memory_limit=self._limit)
        mean: F64 = np.asarray(one, dtype=np.float64)[0] - self._shift.mean()
        return mean

    def at(self, columns: NDArray[np.int64]) -> F64:
        """See :meth:`Scaled.at`."""
        rows = np.asarray(self._scores.isel(train=columns), dtype=np.float64)
        return rows * self._factor[:, None] - self._shift[:, None]


class _Rank(Scaled):
    """Ranks from 0 for the smallest score to 1 for the largest; whole rows, a few targets at a time."""

    def __init__(self, scores: Scores, limit: Limit) -> None:
        self._scores, self._limit = scores, limit

    @cached_property
    def mean(self) -> F64:
        """See :attr:`Scaled.mean`."""
        total = np.zeros(self._scores.shape[1])
        for _, _, rows in target_windows(self._scores, self._limit, _RANKED):
            total += _ranks(rows).sum(0)
        return total / self._scores.shape[0]

    def at(self, columns: NDArray[np.int64]) -> F64:
        """See :meth:`Scaled.at`."""
        windows = target_windows(self._scores, self._limit, _RANKED)
        return np.concatenate([_ranks(rows)[:, columns] for _, _, rows in windows])


def _raw(scores: Scores, limit: Limit) -> Scaled:
    rows = scores.shape[0]
    return _Linear(scores, limit, np.zeros(rows), np.ones(rows))


def _standard(scores: Scores, limit: Limit) -> Scaled:
    """Scale to (τ − mean) / standard deviation."""
    mean, deviation = row_moments(scores, limit)
    equal = np.flatnonzero(deviation == 0)
    if equal.size:
        raise TrakStoreError(
            f"all scores of target {equal[0]} are equal, so that they have no scale: leave it "
            f"out, or use scale='raw'"
        )
    return _Linear(scores, limit, mean / deviation, 1 / deviation)


def _ranks(rows: F64) -> F64:
    ranks: F64 = (rankdata(rows, axis=1) - 1) / max(1, rows.shape[1] - 1)
    return ranks


def _weighted(part: Part, weights: F64) -> Part:
    own = 1.0 if part.row_scale is None else whole_column(part.row_scale)
    return replace(part, row_scale=ArrayRows(weights * own))


SCALES: Mapping[str, Callable[[Scores, Limit], Scaled]] = {
    "raw": _raw,
    "standard": _standard,
    "rank": _Rank,
}

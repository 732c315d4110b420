"""Scores on a scale that two checkpoints have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
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
from trakstore.scores.running_lists import check_finite
from trakstore.scores.sums import group_scores
from trakstore.scores.windows import target_windows

__all__ = ["SCALES", "Scaled"]

F64 = NDArray[np.float64]
_RANKED = 64  # bytes for each score of a window: as computed, as float64, and scratch of ranking


class Scaled(ABC):
    """Scores (m, n), scaled target by target."""

    def __init__(self, scores: Scores, memory_limit: int | str | None) -> None:
        self.scores, self.memory_limit = scores, memory_limit

    @cached_property
    def mean(self) -> F64:
        """Over targets, shape (n,); computed once."""
        return self._mean()

    @abstractmethod
    def _mean(self) -> F64: ...

    @abstractmethod
    def at(self, columns: NDArray[np.int64]) -> F64:
        """For some train rows, shape (m, c)."""


class _Raw(Scaled):
    """τ · factor − shift, linear in the targets."""

    def moments(self) -> tuple[F64, F64]:
        """Shift and factor of each target."""
        rows = self.scores.shape[0]
        return np.zeros(rows), np.ones(rows)

    def __init__(self, scores: Scores, memory_limit: int | str | None) -> None:
        super().__init__(scores, memory_limit)
        self._shift, self._factor = self.moments()

    def _mean(self) -> F64:
        """One column: the mean of the scaled targets' features."""
        rows = self.scores.shape[0]
        parts = tuple(_weighted(part, self._factor / rows) for part in self.scores.parts)
        weighted = replace(self.scores, parts=parts)
        one = group_scores(weighted, targets=np.zeros(rows), memory_limit=self.memory_limit)
        found: F64 = np.asarray(one, dtype=np.float64)[0] - self._shift.mean()
        return found

    def at(self, columns: NDArray[np.int64]) -> F64:
        """See :meth:`Scaled.at`."""
        rows = np.asarray(self.scores.isel(train=columns), dtype=np.float64)
        found: F64 = rows * self._factor[:, None] - self._shift[:, None]
        return found


class _Standard(_Raw):
    """(τ − mean) / standard deviation."""

    def moments(self) -> tuple[F64, F64]:
        """See :meth:`_Raw.moments`."""
        mean, deviation = row_moments(self.scores, self.memory_limit)
        equal = np.flatnonzero(deviation == 0)
        if equal.size:
            raise TrakStoreError(
                f"all scores of target {equal[0]} are equal, so that they have no scale: leave it "
                f"out, or use scale='raw'"
            )
        return mean / deviation, 1 / deviation


class _Rank(Scaled):
    """Ranks from 0 for the smallest score to 1 for the largest."""

    def _mean(self) -> F64:
        """See :meth:`Scaled.mean`; whole rows of scores, a few targets at a time."""
        total = np.zeros(self.scores.shape[1])
        for start, _, rows in target_windows(self.scores, self.memory_limit, _RANKED):
            check_finite(rows, start, np.arange(rows.shape[1]))
            total += _ranks(rows).sum(0)
        return total / self.scores.shape[0]

    def at(self, columns: NDArray[np.int64]) -> F64:
        """See :meth:`Scaled.at`."""
        windows = target_windows(self.scores, self.memory_limit, _RANKED)
        return np.concatenate([_ranks(rows)[:, columns] for _, _, rows in windows])


def _ranks(rows: F64) -> F64:
    found: F64 = (rankdata(rows, axis=1) - 1) / max(1, rows.shape[1] - 1)
    return found


def _weighted(part: Part, weights: F64) -> Part:
    own = 1.0 if part.row_scale is None else whole_column(part.row_scale)
    return replace(part, row_scale=ArrayRows(weights * own))


SCALES: Mapping[str, type[Scaled]] = {"raw": _Raw, "standard": _Standard, "rank": _Rank}

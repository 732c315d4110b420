"""Intervals by the bootstrap."""

from __future__ import annotations

from typing import Any

import numpy as np

from trakstore.errors import TrakStoreError
from trakstore.quantities import as_number, as_whole

__all__ = ["central", "mean_interval"]


def central(resampled: Any, level: float) -> tuple[float, float]:
    """Ends of the middle ``level`` of resampled values: the percentile interval."""
    level = as_number(level, "level", above=0, most=1)
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_interval(values: Any, level: float = 0.95, seed: int = 0) -> tuple[float, float, float]:
    """Mean of some numbers and its bootstrap interval; numbers that are NaN are left out.

    Examples
    --------
    >>> mean_interval([2.0, 2.0, float("nan")])
    (2.0, 2.0, 2.0)
    """
    known = np.asarray(values, dtype=np.float64).ravel()
    known = known[~np.isnan(known)]
    if not known.size:
        raise TrakStoreError("there is nothing to take the mean of")
    rows = np.random.default_rng(as_whole(seed, "seed", 0)).integers(
        known.size, size=(2000, known.size)
    )
    return float(known.mean()), *central(known[rows].mean(axis=1), level)

"""Intervals by the bootstrap."""

from __future__ import annotations

from typing import Any

import numpy as np

from trakstore.errors import NumericsError, TrakStoreError
from trakstore.quantities import as_number, as_whole


def central(resampled: Any, level: float) -> tuple[float, float]:
    """Return the ends of the middle ``level`` of resampled values: the percentile interval."""
    level = as_number(level, "level", above=0, most=1)
    # The percentile interval assumes no normality, and stays within the possible range of the mean.
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_interval(values: Any, level: float = 0.95, seed: int = 0) -> tuple[float, float, float]:
    """Return the mean of some numbers and its bootstrap interval.

    Parameters
    ----------
    values : array of float
        Numbers of any shape; NaN values are left out.
    level : float
        Share of the resampled means that lie in the interval, above 0 and at most 1.
    seed : int
        Seed of the resamples, 2,000 of them.

    Returns
    -------
    mean, low, high : float

    Raises
    ------
    TrakStoreError
        There are no numbers, or ``level`` is out of range.
    NumericsError
        A number is infinite.

    Examples
    --------
    >>> mean_interval([2.0, 2.0, float("nan")])
    (2.0, 2.0, 2.0)
    """
    known = np.asarray(values, dtype=np.float64).ravel()
    known = known[~np.isnan(known)]
    if not known.size:
        raise TrakStoreError("there is nothing to take the mean of")
    if np.isinf(known).any():
        raise NumericsError("some numbers are infinite: they have no mean")
    rng = np.random.default_rng(as_whole(seed, "seed", 0))
    rows = rng.integers(known.size, size=(2000, known.size))
    return float(known.mean()), *central(known[rows].mean(axis=1), level)

"""Seeded subsets of rows, uniform or by stratum, and what they say of the whole."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import TrakStoreError

__all__ = ["Estimate", "Sample", "estimate_mean", "sample_rows"]


@dataclass(frozen=True, eq=False)
class Sample:
    """Rows that were drawn without replacement.

    Attributes
    ----------
    positions : ndarray of int64, shape (drawn,)
        Ascending.
    probability : ndarray of float64, shape (drawn,)
        With which each of them was to be drawn: its stratum's drawn rows over its rows.
    strata : ndarray of int64, shape (n,)
        Stratum of every row, drawn or not; all 0 where there are none.
    """

    positions: NDArray[np.int64]
    probability: NDArray[np.float64]
    strata: NDArray[np.int64]


@dataclass(frozen=True)
class Estimate:
    """A mean, estimated, with its standard error and a confidence interval."""

    value: float
    error: float
    low: float
    high: float


def sample_rows(rows: int, rate: float, *, strata: Any = None, seed: int = 0) -> Sample:
    """A share of the rows; of each stratum its share, and at least two (or all).

    Parameters
    ----------
    rows : int
    rate : float
        Above 0, at most 1.
    strata : array, shape (rows,), optional
        Any values, such as labels; each value is a stratum.
    seed : int

    Raises
    ------
    TrakStoreError
        A rate outside of (0, 1], strata of another length.

    Examples
    --------
    >>> sample_rows(100, 0.05, strata=np.arange(100) % 2).positions.size
    4
    """
    if not 0 < rate <= 1:
        raise TrakStoreError(f"a sampling rate is above 0 and at most 1, got {rate}")
    given = np.zeros(rows, dtype=np.int64) if strata is None else np.asarray(strata)
    if given.shape != (rows,):
        raise TrakStoreError(f"strata have shape {given.shape}, needed one for each of {rows} rows")
    _, of = np.unique(given, return_inverse=True)
    rng, drawn, chance = np.random.default_rng(seed), [], []
    for stratum in range(int(of.max()) + 1 if rows else 0):
        members = np.flatnonzero(of == stratum)
        count = min(len(members), max(2, round(rate * len(members))))
        drawn.append(rng.choice(members, count, replace=False))
        chance.append(np.full(count, count / len(members)))
    positions, probability = np.concatenate(drawn), np.concatenate(chance)
    order = np.argsort(positions)
    return Sample(positions[order], probability[order], of.astype(np.int64))


def estimate_mean(
    sample: Sample,
    values: NDArray[Any],
    within: NDArray[np.bool_] | None = None,
    level: float = 0.95,
) -> Estimate:
    r"""Horvitz-Thompson estimate of the mean of a group of rows, from those that were drawn.

    .. math:: \hat\mu = \frac{1}{N} \sum_{i \in S} \frac{y_i}{\pi_i}, \qquad
              \hat V = \frac{1}{N^2} \sum_h N_h^2 \left(1 - \frac{n_h}{N_h}\right) \frac{s_h^2}{n_h}

    with N the rows of the group, y set to 0 outside of it, and the strata h drawn without replacement.

    Parameters
    ----------
    sample : Sample
    values : array, shape (drawn,)
        Of the rows that were drawn.
    within : array of bool, shape (n,), optional
        The group, known for every row; all rows when None.
    level : float
        Of the interval, which is normal.

    Raises
    ------
    TrakStoreError
        Values of another length, an empty group.

    References
    ----------
    Cochran: "Sampling Techniques", 3rd edition, 1977, equations 5.6 and 5A.4.
    """
    given = np.asarray(values, dtype=np.float64)
    if given.shape != sample.positions.shape:
        raise TrakStoreError(f"values have shape {given.shape}, needed {sample.positions.shape}")
    rows = len(sample.strata)
    group = np.ones(rows, dtype=bool) if within is None else np.asarray(within, dtype=bool)
    if group.shape != (rows,) or not group.any():
        raise TrakStoreError(f"a group is a boolean for each of {rows} rows, at least one true")
    count, given = int(group.sum()), given * group[sample.positions]
    value = float((given / sample.probability).sum() / count)
    error = sqrt(_variance(sample, given)) / count
    reach = NormalDist().inv_cdf((1 + level) / 2) * error
    return Estimate(value, error, value - reach, value + reach)


def _variance(sample: Sample, values: NDArray[np.float64]) -> float:
    """Of the estimated total."""
    of, total = sample.strata[sample.positions], 0.0
    for stratum in np.unique(of):
        drawn = values[of == stratum]
        size = int((sample.strata == stratum).sum())
        if len(drawn) < size:
            total += size * (size - len(drawn)) * float(drawn.var(ddof=1)) / len(drawn)
    return total

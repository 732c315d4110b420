"""Seeded subsets of rows: to estimate the whole from, and to train on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import TrakStoreError
from trakstore.quantities import as_mask, as_number, as_whole, as_wholes

LEVEL = 0.95  # coverage of the interval of an estimate, which is normal


@dataclass(frozen=True, eq=False)
class Sample:
    """Rows that were drawn without replacement.

    Attributes
    ----------
    positions : ndarray of int64, shape (drawn,)
        Rows that were drawn, ascending.
    probability : ndarray of float64, shape (drawn,)
        Probability with which each of them was to be drawn: its stratum's drawn rows over its rows.
    strata : ndarray of int64, shape (n,)
        Stratum of every row, drawn or not; all 0 where there are none.
    """

    positions: NDArray[np.int64]
    probability: NDArray[np.float64]
    strata: NDArray[np.int64]


@dataclass(frozen=True)
class Estimate:
    """Estimate of a mean, with its standard error and a confidence interval."""

    value: float
    error: float
    low: float
    high: float


@dataclass(frozen=True)
class SubsetPlan:
    """Random subsets of train rows, on each of which some models are trained; models are numbered.

    Model q is the (q mod ``repeats``)-th of subset q // ``repeats``. What it is trained on, and its
    seed, depend on its number and on this plan alone, so that models can be added at any time.

    Attributes
    ----------
    rows : int
        Number of train rows, those in ``without`` among them.
    share : float
        Share of the rows in each subset; of those that are not in ``without``.
    repeats : int
        Models of one subset; their outputs are averaged.
    seed : int
        Seed that the subsets and the models' seeds follow from.
    without : sequence of int
        Positions of rows that are in no subset, such as those that a store has masked:
        ``store.split(15, "train").masked``. A tuple afterwards, ascending.

    Raises
    ------
    TrakStoreError
        A share outside of (0, 1], or of less than one row; no repeats; positions ``without`` that are
        none of the rows.

    Examples
    --------
    >>> plan = SubsetPlan(rows=4, repeats=2)
    >>> plan.masks(0, 4).sum(axis=1), plan.subsets(0, 4)
    (array([2, 2, 2, 2]), array([0, 0, 1, 1]))
    >>> SubsetPlan(rows=4, share=1, without=[2]).masks(0, 1)
    array([[ True,  True, False,  True]])
    """

    rows: int
    share: float = 0.5
    repeats: int = 1
    seed: int = 0
    without: Sequence[int] = ()

    def __post_init__(self) -> None:
        for name, least in (("rows", None), ("repeats", 1), ("seed", 0)):
            object.__setattr__(self, name, as_whole(getattr(self, name), name, least))
        object.__setattr__(self, "share", as_number(self.share, "share"))
        without = tuple(sorted(set(as_wholes(self.without, "without"))))
        if without and not 0 <= without[0] <= without[-1] < self.rows:
            raise TrakStoreError(
                f"without has positions in 0..{self.rows - 1}, got {without[0]} to {without[-1]}"
            )
        object.__setattr__(self, "without", without)
        if not 0 < self.share <= 1 or self.size < 1:
            raise TrakStoreError(
                f"a subset is a share in (0, 1] of the rows and has one at least, got "
                f"{self.share} of {self.rows - len(self.without)}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values that the subsets follow from."""
        values = asdict(self)
        left_out = without_rows(values.pop("without"))
        # Sets of before, whose subsets have a row less, do not go on with these.
        as_before = self.without or int(self.share * self.rows) == self.size
        return {**values, **left_out, **({} if as_before else {"size": self.size})}

    @property
    def size(self) -> int:
        """Rows of a subset."""
        # A share such as 0.29 of 100 rows is 28.999999999999996 in floating point: 29 rows are meant.
        return int(self.share * (self.rows - len(self.without)) * (1 + 1e-12))

    def subsets(self, start: int, stop: int) -> NDArray[np.int64]:
        """Numbers of the subsets of models start..stop."""
        return np.arange(start, stop) // self.repeats

    def masks(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Rows that models start..stop are trained on, shape (stop - start, rows)."""
        start = as_whole(start, "start", 0)
        stop = as_whole(stop, "stop", start)
        masks = np.zeros((stop - start, self.rows), dtype=bool)
        rows = np.delete(np.arange(self.rows), self.without)
        for mask, subset in zip(masks, self.subsets(start, stop).tolist(), strict=True):
            # A stream of its own for each subset: which one it is, not what was drawn before, decides.
            rng = np.random.default_rng([self.seed, 0, subset])
            mask[rows[rng.choice(len(rows), self.size, replace=False)]] = True
        return masks

    def seeds(self, start: int, stop: int) -> NDArray[np.int64]:
        """Seeds for training models start..stop, below 2**63."""
        numbers = range(start, stop)
        drawn = [np.random.default_rng([self.seed, 1, q]).integers(2**63) for q in numbers]
        return np.array(drawn, dtype=np.int64)


def without_rows(positions: Sequence[int] | NDArray[np.int64]) -> dict[str, str]:
    """Return what a plan's document says of the rows that it leaves out: their number and a digest.

    Empty where none are left out: stored sets of models go on by the documents that plans had before
    they could leave rows out.
    """
    if not len(positions):
        return {}
    digest = hashlib.sha256(np.asarray(positions, dtype="<i8").tobytes()).hexdigest()
    return {"without": f"{len(positions)} rows ({digest[:16]})"}


def sample_rows(rows: int, rate: float, *, strata: Any = None, seed: int = 0) -> Sample:
    """Draw a share of the rows; of each stratum its share, and at least two (or all).

    Parameters
    ----------
    rows : int
        Number of rows to draw from.
    rate : float
        Share to draw, above 0 and at most 1.
    strata : array, shape (rows,), optional
        Any values, such as labels; each value is a stratum.
    seed : int
        Seed of the draw.

    Raises
    ------
    TrakStoreError
        A rate outside of (0, 1], strata of another length.

    Examples
    --------
    >>> sample_rows(100, 0.05, strata=np.arange(100) % 2).positions.size
    4
    """
    rate = as_number(rate, "a sampling rate", above=0, most=1, needed="is above 0 and at most 1")
    rows, seed = as_whole(rows, "rows", 0), as_whole(seed, "seed", 0)
    given = np.zeros(rows, dtype=np.int64) if strata is None else np.asarray(strata)
    if given.shape != (rows,):
        raise TrakStoreError(f"strata have shape {given.shape}, needed one for each of {rows} rows")
    _, of = np.unique(given, return_inverse=True)
    rng, drawn, chance = np.random.default_rng(seed), [], []
    for stratum in range(int(of.max()) + 1 if rows else 0):
        members = np.flatnonzero(of == stratum)
        # Two of each stratum, or its variance could not be estimated.
        count = min(len(members), max(2, round(rate * len(members))))
        drawn.append(rng.choice(members, count, replace=False))
        chance.append(np.full(count, count / len(members)))
    positions, probability = np.concatenate(drawn), np.concatenate(chance)
    order = np.argsort(positions)
    return Sample(positions[order], probability[order], of.astype(np.int64))


def estimate_mean(
    sample: Sample, values: NDArray[Any], within: NDArray[np.bool_] | None = None
) -> Estimate:
    r"""Estimate the mean of a group of rows from those that were drawn, by Horvitz and Thompson.

    .. math:: \hat\mu = \frac{1}{N} \sum_{i \in S} \frac{y_i}{\pi_i}, \qquad
              \hat V = \frac{1}{N^2} \sum_h N_h^2 \left(1 - \frac{n_h}{N_h}\right) \frac{s_h^2}{n_h}

    with N the rows of the group, y set to 0 outside of it, and the strata h drawn without replacement.

    Parameters
    ----------
    sample : Sample
        Rows that were drawn.
    values : array, shape (drawn,)
        Values of these rows.
    within : array of bool, shape (n,), optional
        The group, known for every row; all rows when None.

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
    group = np.ones(rows, dtype=bool) if within is None else as_mask(within, "a group")
    if group.shape != (rows,) or not group.any():
        raise TrakStoreError(f"a group is a boolean for each of {rows} rows, at least one true")
    count, given = int(group.sum()), given * group[sample.positions]
    value = float((given / sample.probability).sum() / count)
    error = sqrt(_variance(sample, given)) / count
    reach = NormalDist().inv_cdf((1 + LEVEL) / 2) * error
    return Estimate(value, error, value - reach, value + reach)


def _variance(sample: Sample, values: NDArray[np.float64]) -> float:
    """Variance of the estimated total; a stratum that was drawn whole adds nothing."""
    of, total = sample.strata[sample.positions], 0.0
    for stratum in np.unique(of):
        drawn = values[of == stratum]
        size = int((sample.strata == stratum).sum())
        if len(drawn) < size:
            total += size * (size - len(drawn)) * float(drawn.var(ddof=1)) / len(drawn)
    return total

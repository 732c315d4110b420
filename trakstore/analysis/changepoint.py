"""Change points of a curve: the posterior of one change of its mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from trakstore.errors import TrakStoreError


@dataclass(frozen=True)
class ChangePoint:
    """A change of a curve's mean.

    Attributes
    ----------
    index : int
        Most probable first value of the new phase.
    probability : ndarray of float64, shape (values,)
        Probability of each value to be that; 0 for the first two and the last.
    low, high : int
        Ends of the smallest run of values around ``index`` with 95% of the probability.
    evidence : float
        Factor by which the curve is more probable with a change than without.

    Examples
    --------
    >>> change = change_point([0.1, 0.2, 0.1, 0.9, 1.0, 0.9])
    >>> change.index, change.low, change.high
    (3, 3, 3)
    """

    index: int
    probability: NDArray[np.float64]
    low: int
    high: int
    evidence: float


def change_point(values: Sequence[float] | NDArray[Any]) -> ChangePoint:
    r"""Compute the posterior of one change in the mean of normal noise of unknown variance.

    With flat priors for both means and for the logarithm of the deviation, a change before value τ has

    .. math:: p(\tau \mid y) \propto
        \bigl(n_1 n_2\bigr)^{-1/2} \bigl(S_1 + S_2\bigr)^{-(n - 2) / 2}

    where S are the sums of squares about the means of both phases. The evidence compares the best τ
    with a single phase by the Schwarz criterion. A curve with a slope does not fit this model.

    Parameters
    ----------
    values : sequence of float
        A number for each checkpoint in order, such as the test accuracy; at least 5.

    Raises
    ------
    TrakStoreError
        For fewer than 5 values, or values that are not finite.

    Examples
    --------
    >>> change = change_point([0.1, 0.12, 0.11, 0.1, 0.9, 0.91, 0.9, 0.92])
    >>> change.index, change.low, change.high
    (4, 4, 4)
    """
    y = np.asarray(values, dtype=np.float64)
    if y.ndim != 1 or len(y) < 5 or not np.isfinite(y).all():
        raise TrakStoreError(f"a change point needs 5 or more finite values, got {y.tolist()}")
    n = len(y)
    starts = np.arange(2, n - 1)  # two values or more on each side
    squares = np.array([_square(y[:at]) + _square(y[at:]) for at in starts])
    # A curve without noise has sums of 0, whose logarithm would make every other τ impossible.
    floor = np.finfo(float).eps * max(1.0, float(np.square(y).sum()))
    squares, whole = np.maximum(squares, floor), max(_square(y), floor)
    log = -0.5 * np.log(starts * (n - starts)) - 0.5 * (n - 2) * np.log(squares)
    probability = np.zeros(n)
    probability[starts] = np.exp(log - logsumexp(log))
    # Schwarz: half of log n for each of the two further parameters, the second mean and τ.
    fit = 0.5 * n * (np.log(whole) - np.log(squares.min())) - np.log(n)
    index = int(probability.argmax())
    return ChangePoint(index, probability, *_run(probability, index), float(np.exp(min(fit, 700))))


def _square(y: NDArray[np.float64]) -> float:
    return float(np.square(y - y.mean()).sum())


def _run(probability: NDArray[np.float64], index: int, share: float = 0.95) -> tuple[int, int]:
    """Extend a run from the most probable value, each time to the side with the larger probability."""
    low = high = index
    while probability[low : high + 1].sum() < share - 1e-12:
        left = probability[low - 1] if low > 0 else -1.0
        right = probability[high + 1] if high + 1 < len(probability) else -1.0
        low, high = (low - 1, high) if left >= right else (low, high + 1)
    return low, high

"""Wrong labels: planted ones, and how well scores find them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from trakstore.errors import NumericsError, TrakStoreError
from trakstore.evaluation.intervals import central
from trakstore.quantities import as_mask, as_number, as_whole, shown


@dataclass(frozen=True)
class Detection:
    """Detection of some samples by a score of all.

    Attributes
    ----------
    auc, low, high : float
        Area under the ROC curve: chance that one of them has a larger score than another sample;
        and its bootstrap interval.
    precision : float
        Share of them among the as many samples of the largest scores; of those that are equal at the
        last place, as many as are expected of a draw.
    found, samples : int
        Number of these samples, and of samples in all.

    Examples
    --------
    >>> found = detection([0.1, 0.9, 0.8, 0.2], [False, True, True, False])
    >>> found.auc, found.precision, found.found
    (1.0, 1.0, 2)
    """

    auc: float
    low: float
    high: float
    precision: float
    found: int
    samples: int


def detection(
    scores: Any, wrong: Any, *, level: float = 0.95, resamples: int = 1000, seed: int = 0
) -> Detection:
    """Measure how well large scores, such as self-scores, find samples that are known to be wrong.

    Parameters
    ----------
    scores : array, shape (n,)
        A number for each sample.
    wrong : array of bool, shape (n,)
        True for the samples to be found.
    level : float
        Share of the resampled areas that lie in the interval.
    resamples, seed : int
        Number and seed of the resamples: the wrong and the others are drawn apart, so that each has
        as many of both.

    Raises
    ------
    TrakStoreError
        Other shapes; none or all are wrong.
    NumericsError
        Scores that are not finite.

    Examples
    --------
    >>> detection([3.0, 1.0, 2.0, 0.0], [True, False, False, False]).auc
    1.0
    """
    resamples, seed = as_whole(resamples, "resamples", 1), as_whole(seed, "seed", 0)
    values, mask = _numbers(scores), as_mask(wrong, "wrong")
    if values.ndim != 1 or mask.shape != values.shape or not 0 < mask.sum() < len(mask):
        raise TrakStoreError(
            f"needed a score and a boolean for each sample, some true and some not, got "
            f"{values.shape} and {mask.shape} with {int(mask.sum())} true"
        )
    if not np.isfinite(values).all():
        raise NumericsError("scores hold NaN or inf: look at `trakstore kernel`")
    bad, good, rng = values[mask], values[~mask], np.random.default_rng(seed)
    again = [_auc(rng.choice(bad, len(bad)), rng.choice(good, len(good))) for _ in range(resamples)]
    low, high = central(again, level)
    return Detection(_auc(bad, good), low, high, _precision(bad, good), len(bad), len(mask))


def plant_noise(
    labels: Any, share: float, *, classes: int | None = None, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Change a share of the labels, each to another class that is drawn evenly.

    Parameters
    ----------
    labels : array of int, shape (n,)
        The right labels, from 0.
    share : float
        In (0, 1).
    classes : int, optional
        Number of classes; one more than the largest label when None.
    seed : int
        Seed of the draw.

    Returns
    -------
    labels : ndarray of int64, shape (n,)
    wrong : ndarray of bool, shape (n,)
        Labels that were changed.

    Raises
    ------
    TrakStoreError
        A share outside of (0, 1), fewer than two classes, labels that are no whole numbers from 0
        to the last class.

    Examples
    --------
    >>> noisy, wrong = plant_noise([0, 1, 0, 1], 0.5)
    >>> (noisy != [0, 1, 0, 1]).tolist() == wrong.tolist(), int(wrong.sum())
    (True, 2)
    """
    given = _whole_labels(labels)
    count = int(given.max()) + 1 if classes is None else as_whole(classes, "classes")
    share, seed = as_number(share, "share"), as_whole(seed, "seed", 0)
    if not 0 < share < 1 or count < 2:
        raise TrakStoreError(f"needed a share in (0, 1) and two classes, got {share} and {count}")
    if given.max() >= count:
        raise TrakStoreError(f"labels are from 0 to {count - 1}, got {int(given.max())}")
    rng = np.random.default_rng(seed)
    wrong = np.zeros(len(given), dtype=bool)
    wrong[rng.choice(len(given), round(share * len(given)), replace=False)] = True
    # A step of 1 to classes - 1 around the circle of classes reaches every other class alike.
    other = (given + rng.integers(1, count, len(given))) % count
    return np.where(wrong, other, given), wrong


def _whole_labels(labels: Any) -> NDArray[np.int64]:
    """Return labels as integers; a :class:`TrakStoreError` for any that rounding would change."""
    try:
        given = np.asarray(labels)
    except ValueError:  # ragged lists
        given = np.empty(0)
    whole = given.ndim == 1 and given.size > 0 and given.dtype.kind in "biuf"
    if not whole or (given != np.floor(given)).any() or given.min() < 0:
        raise TrakStoreError(f"labels must be whole numbers from 0, got {shown(labels)}")
    return given.astype(np.int64)


def _numbers(scores: Any) -> NDArray[np.float64]:
    try:
        return np.asarray(scores, dtype=np.float64)
    except (TypeError, ValueError):
        raise TrakStoreError(f"scores must be numbers, got {shown(scores)}") from None


def _precision(bad: NDArray[np.float64], good: NDArray[np.float64]) -> float:
    """Return the share of the wrong among as many of the largest scores: there it is the recall, too.

    Samples whose scores are equal at the last place have no order: each counts by its chance.
    """
    last = np.sort(np.concatenate([bad, good]))[-len(bad)]
    above, tied = (bad > last).sum(), (bad == last).sum()
    places = len(bad) - above - (good > last).sum()
    return float((above + places * tied / (tied + (good == last).sum())) / len(bad))


def _auc(bad: NDArray[np.float64], good: NDArray[np.float64]) -> float:
    """Divide Mann and Whitney's U by the number of pairs: the area under the curve, ties by half."""
    ranks = rankdata(np.concatenate([bad, good]))[: len(bad)]
    return float((ranks.sum() - len(bad) * (len(bad) + 1) / 2) / (len(bad) * len(good)))

"""Whether scores of samples find those whose labels are wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from trakstore.errors import NumericsError, TrakStoreError
from trakstore.evaluation.intervals import central
from trakstore.quantities import as_number, as_whole

__all__ = ["Detection", "detection", "plant_noise"]


@dataclass(frozen=True)
class Detection:
    """How well a score of samples finds some of them.

    Attributes
    ----------
    auc, low, high : float
        Area under the ROC curve: chance that one of them has a larger score than another sample;
        and its bootstrap interval.
    precision : float
        Share of them among the as many samples of the largest scores.
    found, samples : int
        How many of them there are, and samples in all.
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
    """How well large scores, such as self-scores, find samples that are known to be wrong.

    Parameters
    ----------
    scores : array, shape (n,)
    wrong : array of bool, shape (n,)
    level, resamples, seed
        Of the interval, which resamples the wrong and the others apart.

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
    values, mask = np.asarray(scores, dtype=np.float64), np.asarray(wrong, dtype=bool)
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
    first = np.argsort(-values, kind="stable")[: len(bad)]
    return Detection(_auc(bad, good), low, high, float(mask[first].mean()), len(bad), len(mask))


def plant_noise(
    labels: Any, share: float, *, classes: int | None = None, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Labels of which a share was changed to another class, drawn evenly; and which.

    Parameters
    ----------
    labels : array of int, shape (n,)
    share : float
        In (0, 1).
    classes : int, optional
        One more than the largest label when None.
    seed : int

    Examples
    --------
    >>> noisy, wrong = plant_noise([0, 1, 0, 1], 0.5)
    >>> (noisy != [0, 1, 0, 1]).tolist() == wrong.tolist(), int(wrong.sum())
    (True, 2)
    """
    given = np.asarray(labels, dtype=np.int64)
    count = int(given.max()) + 1 if classes is None else as_whole(classes, "classes")
    share, seed = as_number(share, "share"), as_whole(seed, "seed", 0)
    if not 0 < share < 1 or count < 2:
        raise TrakStoreError(f"needed a share in (0, 1) and two classes, got {share} and {count}")
    rng = np.random.default_rng(seed)
    wrong = np.zeros(len(given), dtype=bool)
    wrong[rng.choice(len(given), round(share * len(given)), replace=False)] = True
    other = (given + rng.integers(1, count, len(given))) % count
    return np.where(wrong, other, given), wrong


def _auc(bad: NDArray[np.float64], good: NDArray[np.float64]) -> float:
    """Mann and Whitney's U over the number of pairs; ties count half."""
    ranks = rankdata(np.concatenate([bad, good]))[: len(bad)]
    return float((ranks.sum() - len(bad) * (len(bad) + 1) / 2) / (len(bad) * len(good)))

"""Scores by groups: the part from the own class, and the difference between two kinds of targets."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trakstore.analysis.concentration import (
    gini_of_rows,
    own_share_of_rows,
    participation_of_rows,
    positive_mass_of_rows,
)
from trakstore.errors import TrakStoreError
from trakstore.quantities import as_mask
from trakstore.scores.factored import Scores
from trakstore.scores.needed import need_scores
from trakstore.scores.sums import group_scores
from trakstore.scores.windows import Matrix, need_labels, target_windows


class ClassSummary(NamedTuple):
    """Origin of each target's score, and its concentration; float64 of shape (m,).

    ``share`` and ``base`` are those of :func:`same_class_share`; ``participation_ratio``, ``gini`` and
    ``positive_mass`` (of the first tenth) are from the functions of these names.
    """

    share: NDArray[np.float64]
    base: NDArray[np.float64]
    participation_ratio: NDArray[np.float64]
    gini: NDArray[np.float64]
    positive_mass: NDArray[np.float64]

    def means(self) -> dict[str, float]:
        """Means over the targets that have a value."""
        columns = {
            "same_class_share": self.share,
            "same_class_base_rate": self.base,
            "participation_ratio": self.participation_ratio,
            "gini": self.gini,
            "positive_mass_top_tenth": self.positive_mass,
        }
        return {name: float(np.nanmean(values)) for name, values in columns.items()}


def contrast(
    scores: Scores, aligned: Any, conflicting: Any, memory_limit: int | str | None = None
) -> NDArray[np.float64]:
    """Compute the mean score of each train sample for some targets, less that for others.

    If ``aligned`` targets are solved by a shortcut, and ``conflicting`` ones misled by it, samples that
    teach the shortcut have large values: they help one kind and harm the other. Scores are linear in
    the targets, so that each kind is one column.

    Parameters
    ----------
    scores : Scores, shape (m, n)
        Scores of both kinds of targets.
    aligned, conflicting : array of bool, shape (m,)
        Targets of each kind; none may be of both, and others are left out.
    memory_limit : int or str, optional
        Bytes of one process; a quarter of the available memory when None.

    Returns
    -------
    ndarray of float64, shape (n,)
        Mean score of the aligned less that of the conflicting targets.

    Raises
    ------
    TrakStoreError
        For masks of another length, an empty kind, or a target of both kinds.

    Examples
    --------
    >>> aligned = np.arange(6) < 3
    >>> contrast(ts.grad_dot_scores(store), aligned, ~aligned).shape
    (24,)
    """
    need_scores(scores)
    one, other = as_mask(aligned, "aligned"), as_mask(conflicting, "conflicting")
    count = scores.shape[0]
    if not one.shape == other.shape == (count,) or (one & other).any():
        raise TrakStoreError(f"needed two masks of {count} targets that share none")
    if not (one.any() and other.any()):
        raise TrakStoreError("both kinds need a target")
    chosen = np.flatnonzero(one | other)
    groups = one[chosen].astype(np.int64)
    picked = scores.isel(target=chosen)
    summed = group_scores(picked, targets=groups, how="mean", memory_limit=memory_limit)
    # Groups come sorted: False, the conflicting targets, is first.
    conflicting_mean, aligned_mean = np.asarray(summed, dtype=np.float64)
    difference: NDArray[np.float64] = aligned_mean - conflicting_mean
    return difference


def same_class_share(
    scores: Matrix,
    train_labels: Any,
    target_labels: Any,
    memory_limit: int | str | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute the share of each target's positive score from its own class, and that class's share.

    For a model that knows nothing of classes the two are equal; a larger score is a bias towards the
    own class.

    Parameters
    ----------
    scores : Scores, DataArray or array, shape (m, n)
        Scores of m targets with n train samples.
    train_labels, target_labels : array, shapes (n,) and (m,)
        Their classes, of any type that compares.
    memory_limit : int or str, optional
        Bytes of one process; a quarter of the available memory when None.

    Returns
    -------
    share, base : ndarray of float64, shape (m,)
        ``share`` is NaN for a target without positive scores; ``base`` is the share of train samples
        that are of the target's class.

    Raises
    ------
    TrakStoreError
        For labels of another length.

    Examples
    --------
    >>> share, base = same_class_share(ts.trak_scores(store), np.arange(24) % 3, np.arange(6) % 3)
    >>> bool((share > base).all()), base.round(2).tolist()
    (True, [0.33, 0.33, 0.33, 0.33, 0.33, 0.33])
    """
    train, target = need_labels(scores, train_labels, target_labels)
    shares = [
        own_share_of_rows(rows, target[start:stop, None] == train)
        for start, stop, rows in target_windows(scores, memory_limit)
    ]
    return np.concatenate(shares), _base(train, target)


def class_summary(
    scores: Matrix,
    train_labels: Any,
    target_labels: Any,
    memory_limit: int | str | None = None,
) -> ClassSummary:
    """Compute the share of the own class and all measures of concentration, in one pass.

    Parameters and errors as in :func:`same_class_share`.
    """
    train, target = need_labels(scores, train_labels, target_labels)
    windows = []
    for start, stop, rows in target_windows(scores, memory_limit):
        share = own_share_of_rows(rows, target[start:stop, None] == train)
        spread = participation_of_rows(rows), gini_of_rows(rows), positive_mass_of_rows(rows, 0.1)
        windows.append((share, *spread))
    share, *spreads = (np.concatenate(parts) for parts in zip(*windows, strict=True))
    return ClassSummary(share, _base(train, target), *spreads)


def _base(train: NDArray[Any], target: NDArray[Any]) -> NDArray[np.float64]:
    """Return the share of train samples in each target's class; 0 for a class without train samples."""
    labels, counts = np.unique(train, return_counts=True)
    of = dict(zip(labels.tolist(), (counts / len(train)).tolist(), strict=True))
    return np.array([of.get(label, 0.0) for label in target.tolist()])

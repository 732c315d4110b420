"""Scores by groups: how much comes from the own class, and what tells two kinds of targets apart."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import TrakStoreError
from trakstore.linalg.factored import Scores
from trakstore.linalg.sums import group_scores
from trakstore.linalg.windows import Matrix, target_windows

__all__ = ["contrast", "same_class_share"]


def contrast(
    scores: Scores, aligned: Any, conflicting: Any, memory_limit: int | str | None = None
) -> NDArray[np.float64]:
    """How much more each train sample helps some targets than others.

    Where ``aligned`` targets are solved by a shortcut and ``conflicting`` ones misled by it, samples
    that teach the shortcut have large values: they help the one kind and harm the other. Scores are
    linear in the targets, so each kind is one column.

    Parameters
    ----------
    scores : Scores, shape (m, n)
    aligned, conflicting : array of bool, shape (m,)
        Targets of each kind; none is of both, others are left out.
    memory_limit : int or str, optional
        Bytes of one process; a quarter of the available memory when None.

    Returns
    -------
    ndarray of float64, shape (n,)
        Mean score of the aligned less that of the conflicting targets.

    Raises
    ------
    TrakStoreError
        For masks of another length, an empty kind, a target of both kinds.
    """
    one, other = (np.asarray(mask, dtype=bool) for mask in (aligned, conflicting))
    count = scores.shape[0]
    if not one.shape == other.shape == (count,) or (one & other).any():
        raise TrakStoreError(f"needed two masks of {count} targets that share none")
    if not (one.any() and other.any()):
        raise TrakStoreError("both kinds need a target")
    chosen = np.flatnonzero(one | other)
    groups = one[chosen].astype(np.int64)
    picked = scores.isel(target=chosen)
    summed = group_scores(picked, targets=groups, how="mean", memory_limit=memory_limit)
    without, having = np.asarray(summed, dtype=np.float64)
    found: NDArray[np.float64] = having - without
    return found


def same_class_share(
    scores: Matrix,
    train_labels: Any,
    target_labels: Any,
    memory_limit: int | str | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Share of each target's positive score from its own class, and the share of that class.

    A model that knows nothing of classes has both equal; more is a bias towards the own class.

    Parameters
    ----------
    scores : Scores, DataArray or array, shape (m, n)
    train_labels : array, shape (n,)
    target_labels : array, shape (m,)
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
    """
    train, target = np.asarray(train_labels), np.asarray(target_labels)
    if (target.shape, train.shape) != ((scores.shape[0],), (scores.shape[1],)):
        raise TrakStoreError(
            f"scores of {scores.shape} need labels of these lengths, got {target.shape} and "
            f"{train.shape}"
        )
    shares = []
    for start, stop, rows in target_windows(scores, memory_limit):
        own, positive = target[start:stop, None] == train, np.maximum(rows, 0)
        with np.errstate(invalid="ignore"):
            shares.append((positive * own).sum(1) / positive.sum(1))
    labels, counts = np.unique(train, return_counts=True)
    of = dict(zip(labels.tolist(), (counts / len(train)).tolist(), strict=True))
    return np.concatenate(shares), np.array([of.get(label, 0.0) for label in target.tolist()])

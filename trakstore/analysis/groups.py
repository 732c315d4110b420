"""Scores by class: how much of a target's score comes from its own."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import TrakStoreError
from trakstore.linalg.windows import Matrix, target_windows

__all__ = ["same_class_share"]


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

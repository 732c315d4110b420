"""Concentration of scores: the share of a target's score that a few train samples hold."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trakstore.quantities import as_number
from trakstore.scores.windows import Matrix, by_target

F64 = NDArray[np.float64]


def participation_ratio(scores: Matrix, memory_limit: int | str | None = None) -> F64:
    """Compute the participation ratio of each target: the number of samples that share its score.

    This is ``(Σ|τ|)² / Σ τ²``: from 1, where one sample has it all, to n. NaN for a target whose scores
    are all zero.

    Parameters
    ----------
    scores : Scores, DataArray or array, shape (m, n)
        Scores of m targets with n train samples.
    memory_limit : int or str, optional
        Bytes of one process; a quarter of the available memory when None.

    Returns
    -------
    ndarray of float64, shape (m,)

    Examples
    --------
    >>> participation_ratio(np.array([[1.0, 0.0, 0.0], [1.0, -1.0, 1.0]]))
    array([1., 3.])
    """
    return by_target(scores, participation_of_rows, memory_limit)


def gini(scores: Matrix, memory_limit: int | str | None = None) -> F64:
    """Compute the Gini coefficient of ``|τ|`` for each target: 0 to nearly 1, if one has all.

    Parameters
    ----------
    scores, memory_limit
        As in :func:`participation_ratio`.

    Returns
    -------
    ndarray of float64, shape (m,)

    Examples
    --------
    >>> gini(np.array([[1.0, 1.0, -1.0, 1.0], [0.0, 0.0, 0.0, 2.0]]))
    array([0.  , 0.75])
    """
    return by_target(scores, gini_of_rows, memory_limit)


def positive_mass(scores: Matrix, share: float = 0.1, memory_limit: int | str | None = None) -> F64:
    """Compute the part of each target's positive score that its first ``share`` of train samples hold.

    Only positive scores count, since a share of a signed total has no meaning. NaN for a target without
    positive scores.

    Parameters
    ----------
    scores, memory_limit
        As in :func:`participation_ratio`.
    share : float
        Share of the train samples, above 0 and at most 1; at least one sample is counted.

    Examples
    --------
    >>> positive_mass(np.array([[3.0, 1.0, -5.0, 0.0]]), share=0.25)
    array([0.75])
    """
    share = as_number(share, "share", above=0, most=1, needed="must be above 0 and at most 1")
    return by_target(scores, lambda rows: positive_mass_of_rows(rows, share), memory_limit)


def participation_of_rows(rows: F64) -> F64:
    """Compute :func:`participation_ratio` from whole rows of scores (targets, n)."""
    return _ratio(np.abs(rows).sum(1) ** 2, np.square(rows).sum(1))


def gini_of_rows(rows: F64) -> F64:
    """Compute :func:`gini` from whole rows of scores (targets, n)."""
    ordered, n = np.sort(np.abs(rows), axis=1), rows.shape[1]
    # Mean absolute difference over twice the mean. Of ascending values, the i-th of n exceeds i - 1
    # others and is below n - i, so that it counts 2i - n - 1 times.
    return _ratio(ordered @ (2 * np.arange(1, n + 1) - n - 1), n * ordered.sum(1))


def positive_mass_of_rows(rows: F64, share: float) -> F64:
    """Compute :func:`positive_mass` from whole rows of scores (targets, n)."""
    count = max(1, round(share * rows.shape[1]))
    ordered = -np.sort(-np.maximum(rows, 0), axis=1)
    return _ratio(ordered[:, :count].sum(1), ordered.sum(1))


def own_share_of_rows(rows: F64, own: NDArray[np.bool_]) -> F64:
    """Compute the share of the positive score, in whole rows, of train samples in the own class."""
    positive = np.maximum(rows, 0)
    return _ratio((positive * own).sum(1), positive.sum(1))


def _ratio(part: F64, whole: F64) -> F64:
    """Divide; NaN, without a warning, for a target whose scores are all 0."""
    with np.errstate(invalid="ignore"):
        ratio: F64 = part / whole
    return ratio

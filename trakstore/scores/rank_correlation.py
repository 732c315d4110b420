"""Rank correlation of rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

F64 = NDArray[np.float64]


def spearman(a: NDArray[Any], b: NDArray[Any]) -> F64:
    """Compute Spearman's correlation for each row of two arrays (m, n); NaN for constant rows.

    Examples
    --------
    >>> spearman(np.array([[1.0, 2.0, 9.0]]), np.array([[5.0, 4.0, 3.0]]))
    array([-1.])
    """
    return row_correlation(centred_ranks(a), centred_ranks(b))


def centred_ranks(rows: NDArray[Any]) -> F64:
    """Rank each row and subtract the mean; ties share the mean of their ranks."""
    # The ranks 1..n have the mean (n + 1)/2, with ties too.
    centred: F64 = rankdata(rows, axis=1) - (rows.shape[1] + 1) / 2
    return centred


def row_correlation(a: F64, b: F64) -> F64:
    """Compute the correlation of rows whose means are 0; NaN for rows of zeros."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    with np.errstate(invalid="ignore"):
        correlation: F64 = (a * b).sum(1) / norms
    return correlation

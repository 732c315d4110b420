"""Rank correlation of rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

__all__ = ["spearman"]


def spearman(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """Spearman's correlation of each row of two arrays (m, n); NaN where a row is constant.

    Examples
    --------
    >>> spearman(np.array([[1.0, 2.0, 9.0]]), np.array([[5.0, 4.0, 3.0]]))
    array([-1.])
    """
    ranks = [rankdata(rows, axis=1) - (rows.shape[1] + 1) / 2 for rows in (a, b)]
    norms = np.linalg.norm(ranks[0], axis=1) * np.linalg.norm(ranks[1], axis=1)
    with np.errstate(invalid="ignore"):
        found: NDArray[np.float64] = (ranks[0] * ranks[1]).sum(1) / norms
    return found

"""Scores in a narrower dtype, or a refusal: nothing is clamped, nothing lost without a word."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import NumericsError
from trakstore.storage.columns import UNDERFLOW

__all__ = ["narrowed"]


def narrowed(scores: NDArray[np.float32], dtype: str, what: str) -> NDArray[Any]:
    """Scores as they are stored.

    Parameters
    ----------
    scores : ndarray of float32, shape (rows, columns) or (columns,)
    dtype : str
        The stored dtype.
    what : str
        Which scores these are, for the message.

    Raises
    ------
    NumericsError
        When a score is not finite in ``dtype``, or the norm of a row changes by more than 1%, since
        its scores are too small.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        stored = scores.astype(dtype, copy=False)
        total = np.add.reduce(stored, axis=None, dtype=np.float32)  # one pass, nothing kept
    if not np.isfinite(total) and not np.isfinite(stored).all():
        raise NumericsError(
            f"{what} are not finite in {dtype}; raise the damping, look at the features with "
            f"`trakstore kernel`, or save float32"
        )
    if stored is not scores:
        before, after = _norms(scores), _norms(stored)
        if (np.abs(after - before) > UNDERFLOW * before).any():
            raise NumericsError(
                f"{what} are too small for {dtype}: the norm of a row changes by more than 1%; save "
                f"float32"
            )
    return stored


def _norms(rows: NDArray[Any]) -> NDArray[np.float64]:
    norms: NDArray[np.float64] = np.sqrt(np.einsum("...j,...j->...", rows, rows, dtype=np.float64))
    return norms

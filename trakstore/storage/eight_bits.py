"""Rows in 8 bits a number: integers from -127 to 127, times one scale a row.

The scale of a row is its largest magnitude over 127, and each number becomes the nearest multiple of
the scale, ties going to the even one. This is elementwise float32 arithmetic, the same everywhere, so
that a number is off by at most half a scale, plus a rounding of float32. The largest of k normal
numbers is about √(2 ln k) standard deviations, so that rounding moves such a row by about a hundredth
of its norm: 0.007 at k = 512, 0.009 at k = 16,384. Rows with a few far larger numbers lose more:
sketches of a small language model's gradients lost 0.02 on average at k = 8,192. The error is
independent of other rows: a share e of the norm adds e² to the variance that the projection has anyway.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

EIGHT_BITS = "int8"  # the name of the stored dtype
LARGEST = 127  # symmetric: -128 is never stored
# Most that rounding may move a row, as a share of its norm. It moves a row further if one number is far
# larger than all others, or if all are near the smallest float32.
MOST_ERROR = 0.25


def quantised(rows: NDArray[Any]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return rows as integers, and the scale of each; for rows that are not finite they mean nothing.

    Parameters
    ----------
    rows : ndarray of floats, shape (rows, k)

    Returns
    -------
    integers : ndarray of int8, shape (rows, k)
    scale : ndarray of float32, shape (rows,)
        0 for a row of zeros, and for one whose numbers are all below 1e-43.

    Examples
    --------
    >>> quantised(np.array([[-2.54, 1.27, 0.0], [0.0, 0.0, 0.0]]))[0]
    array([[-127,   64,    0],
           [   0,    0,    0]], dtype=int8)
    """
    with np.errstate(all="ignore"):
        wide = rows.astype(np.float32, copy=False)
        scale: NDArray[np.float32] = np.abs(wide).max(axis=1, initial=0.0) / np.float32(LARGEST)
        steps = np.rint(wide / np.where(scale > 0, scale, 1)[:, None])
        # A subnormal scale is coarse, so that numbers may exceed 127 times it. The resulting change
        # shows when the row is compared with its former values.
        np.clip(steps, -LARGEST, LARGEST, out=steps)
        return steps.astype(np.int8), scale


def dequantised(integers: NDArray[np.int8], scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the float32 rows that integers and scales stand for, shape (rows, k).

    Examples
    --------
    >>> dequantised(np.array([[-127, 64]], np.int8), np.array([0.5], np.float32))
    array([[-63.5,  32. ]], dtype=float32)
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return np.multiply(integers, scale[:, None], dtype=np.float32)


def rounding_bound(scale: NDArray[Any], dim: int) -> NDArray[np.float64]:
    """Return the largest distance of each row from its values before rounding: √k·scale/2.

    This is without a rounding of float32, relative to the norm.
    """
    bound: NDArray[np.float64] = scale.astype(np.float64) * (0.5 * np.sqrt(dim))
    return bound

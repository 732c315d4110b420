"""The few directions in which rows are largest, apart from the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from trakstore.passes.sent import Sent

F32 = NDArray[np.float32]
_SHARE = 64  # one direction of so many is apart
_TURNS = 3  # of the power method, from random directions on


@dataclass(frozen=True, eq=False)
class TopDirections(Sent):
    """Directions of rows that a matrix turns, and what it makes of each.

    Gradients are large in few directions, which a kernel's inverse shrinks: numbers that are rounded
    alike lose what is small in the rows and large once they are turned. Without these directions there
    is little to lose.

    Attributes
    ----------
    directions : ndarray of float32, shape (k, r)
        Orthonormal columns.
    turned : ndarray of float32, shape (r, k)
    """

    directions: F32
    turned: F32

    @classmethod
    def of(cls, rows: F32, matrix: F32) -> Self:
        """Find them in some rows (n, k), for a matrix (k, k)."""
        count = max(1, rows.shape[1] // _SHARE)
        rng = np.random.default_rng(0)
        directions = rng.standard_normal((rows.shape[1], count), dtype=np.float32)
        for _ in range(_TURNS):
            directions = np.linalg.qr(rows.T @ (rows @ directions))[0]
        return cls(directions, directions.T @ matrix)

    def split(self, rows: F32, rest: F32, turned: F32) -> None:
        """Write what is left of rows (n, k) without them, and what the matrix makes of their share."""
        share = rows @ self.directions
        np.matmul(share, self.directions.T, out=rest)
        np.subtract(rows, rest, out=rest)
        np.matmul(share, self.turned, out=turned)

"""The explicit inverse, for people who want to look at it; nothing here multiplies with one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trakstore.kernels.solvers import Factor
from trakstore.passes.memory import memory_budget
from trakstore.planning import fit_slots, ranges, window_rows


def inverse(factor: Factor, *, memory_limit: int | str | None = None) -> NDArray[np.float64]:
    """Compute (K + λI)⁻¹, shape (k, k), symmetric.

    Raises
    ------
    MemoryLimitError
        When it does not fit: :func:`save_inverse` writes one of any size.

    Examples
    --------
    >>> from trakstore.kernels.gram import Gram
    >>> from trakstore.kernels.solvers import Cholesky
    >>> inverse(Cholesky().factor(Gram(np.diag([3.0, 1.0]), rows=4, trace=4.0)))
    array([[0.25, 0.  ],
           [0.  , 0.5 ]])
    """
    dim, limit = factor.dim, memory_budget(memory_limit)
    # Five k x k matrices: the unit matrix, what solvers make of it, and the two halves of the mean.
    fit_slots(1, 1, 0, 40 * dim * dim, limit, f"the inverse of a kernel of {dim} in memory")
    solved = factor.solve(np.eye(dim))
    # Solving rounds each row on its own, so that the two triangles differ in the last bits.
    return (solved + solved.T) / 2


def save_inverse(factor: Factor, out: Any, *, memory_limit: int | str | None = None) -> None:
    """Write (K + λI)⁻¹ strip by strip into ``out``, a (k, k) Zarr or NumPy array.

    Raises
    ------
    MemoryLimitError
        When one row does not fit.
    """
    dim, limit = factor.dim, memory_budget(memory_limit)
    strip = window_rows(dim, 40 * dim, 0, limit, f"one row of the inverse of a kernel of {dim}")
    # Whole chunks where one fits, since a Zarr array writes a part of a chunk by reading it first.
    chunk = getattr(out, "chunks", (1,))[0]
    strip = max(strip // chunk * chunk, min(chunk, strip))
    for start, stop in ranges(dim, strip):
        unit = np.zeros((stop - start, dim))
        unit[np.arange(stop - start), np.arange(start, stop)] = 1
        out[start:stop] = factor.solve(unit)

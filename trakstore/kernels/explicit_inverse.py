"""The explicit inverse, for people who want to look at it; nothing here multiplies with one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trakstore.kernels.solvers import Factor
from trakstore.passes.memory import memory_budget
from trakstore.planning import fit_slots, ranges, window_rows

__all__ = ["inverse", "save_inverse"]


def inverse(factor: Factor, *, memory_limit: int | str | None = None) -> NDArray[np.float64]:
    """(K + λI)⁻¹, shape (k, k), symmetric.

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
    fit_slots(1, 1, 0, 40 * dim * dim, limit, f"the inverse of a kernel of {dim} in memory")
    found = factor.solve(np.eye(dim))
    return (found + found.T) / 2


def save_inverse(factor: Factor, out: Any, *, memory_limit: int | str | None = None) -> None:
    """Write (K + λI)⁻¹ strip by strip into ``out``, a (k, k) Zarr or NumPy array.

    Raises
    ------
    MemoryLimitError
        When one row does not fit.
    """
    dim, limit = factor.dim, memory_budget(memory_limit)
    strip = window_rows(dim, 40 * dim, 0, limit, f"one row of the inverse of a kernel of {dim}")
    chunk = getattr(out, "chunks", (1,))[0]
    strip = max(strip // chunk * chunk, min(chunk, strip))
    for start, stop in ranges(dim, strip):
        unit = np.zeros((stop - start, dim))
        unit[np.arange(stop - start), np.arange(start, stop)] = 1
        out[start:stop] = factor.solve(unit)

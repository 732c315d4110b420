"""Lengths of rows in the metric of (K + λI)⁻¹, and the inverse itself, for people to look at.

Nothing here multiplies by the explicit inverse.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from trakstore.errors import NumericsError
from trakstore.kernels.solvers import F64, Factor
from trakstore.passes.memory import fitting_slots, memory_budget
from trakstore.passes.one_pass import ListPass
from trakstore.passes.rows import Rows
from trakstore.passes.scheduler import tile_rows
from trakstore.planning import fit_slots, ranges, window_rows


def quadratic_form(rows: Rows, factor: Factor, *, memory_limit: int | str | None = None) -> F64:
    """Compute the squared length of each row in the metric of a factored kernel.

    Parameters
    ----------
    rows : Rows, shape (n, k)
    factor : Factor
        K + λI.
    memory_limit : int or str, optional
        Bytes of one process; a quarter of the available memory when None.

    Returns
    -------
    ndarray of float64, shape (n,)
        rᵢ (K + λI)⁻¹ rᵢᵀ.

    Raises
    ------
    NumericsError
        When a row is not finite.
    MemoryLimitError
        When a tile of rows does not fit.
    """
    count, dim = rows.shape
    step = max(tile_rows(rows), factor.solve_rows)
    # A task has a stored tile, and four in float64 that the solver uses. Beside all tasks there is the
    # factor's temporary memory, and the lengths twice, since results are joined.
    each = min(step, count) * dim * (rows.dtype.itemsize + 32)
    fixed = 8 * dim * dim + 16 * count
    what = f"lengths of rows of {dim} in a kernel's metric"
    workers = fitting_slots(fixed, each, memory_budget(memory_limit), what)
    return _LengthPass(step, rows, factor).run(count, workers=workers)


@dataclass(frozen=True, eq=False)
class _LengthPass(ListPass):
    rows: Rows
    factor: Factor

    def tile(self, low: int, high: int) -> F64:
        rows = self.rows.read(low, high).astype(np.float64)
        lengths: F64 = np.einsum("ij,ij->i", self.factor.solve(rows), rows)
        if not np.isfinite(lengths).all():
            raise NumericsError(f"rows {low}..{high} are not finite: featurize them again")
        return lengths


def inverse(factor: Factor, *, memory_limit: int | str | None = None) -> F64:
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
    # Five k x k matrices: the unit matrix, two in the solver, and the two halves of the mean.
    fit_slots(1, 1, 0, 40 * dim * dim, limit, f"the inverse of a kernel of {dim} in memory")
    solved = factor.solve(np.eye(dim))
    # Each row is rounded on its own, so that the triangles differ in the last bits: their mean is
    # taken.
    return (solved + solved.T) / 2


def save_inverse(factor: Factor, out: Any, *, memory_limit: int | str | None = None) -> None:
    """Write (K + λI)⁻¹ strip by strip into ``out``, a (k, k) Zarr or NumPy array.

    Raises
    ------
    MemoryLimitError
        When one row does not fit.

    Examples
    --------
    >>> from trakstore.kernels import factor_split
    >>> out = np.empty((8, 8))
    >>> save_inverse(factor_split(store.split(15, "train")), out)
    >>> np.allclose(out, out.T)
    True
    """
    dim, limit = factor.dim, memory_budget(memory_limit)
    strip = window_rows(dim, 40 * dim, 0, limit, f"one row of the inverse of a kernel of {dim}")
    # Whole chunks if one fits, since Zarr writes a part of a chunk by reading the chunk first.
    chunk = getattr(out, "chunks", (1,))[0]
    strip = max(strip // chunk * chunk, min(chunk, strip))
    for start, stop in ranges(dim, strip):
        unit = np.zeros((stop - start, dim))
        unit[np.arange(stop - start), np.arange(start, stop)] = 1
        out[start:stop] = factor.solve(unit)

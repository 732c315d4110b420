"""φᵀ (K + λI)⁻¹ φ of many rows, in one pass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trakstore.errors import NumericsError
from trakstore.kernels.solvers import F64, Factor
from trakstore.passes.memory import fitting_slots, memory_budget
from trakstore.passes.one_pass import ListPass
from trakstore.passes.rows import Rows
from trakstore.passes.scheduler import tile_rows


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
        A row that is not finite.
    MemoryLimitError
        A tile of rows does not fit.
    """
    count, dim = rows.shape
    step = max(tile_rows(rows), factor.solve_rows)
    # A task has a tile as stored and four of float64, on the way through the solver. Beside all tasks
    # lies a factor's share of temporaries, and the lengths twice, since results are put together.
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

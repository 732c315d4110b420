"""φᵀ (K + λI)⁻¹ φ of many rows, in one pass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import NumericsError
from trakstore.kernels.solvers import Factor
from trakstore.passes.dask_cluster import active_client
from trakstore.passes.memory import memory_budget
from trakstore.passes.rows import Rows
from trakstore.passes.scheduler import map_reduce, task_slots, tile_rows
from trakstore.planning import fit_slots, ranges

__all__ = ["quadratic_form"]


def quadratic_form(
    rows: Rows, factor: Factor, *, memory_limit: int | str | None = None
) -> NDArray[np.float64]:
    """The squared length of each row in the metric of a factored kernel.

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
    slots = task_slots()
    each = min(step, count) * dim * (rows.dtype.itemsize + 32)
    fixed = 8 * dim * dim + 16 * count
    least = slots if active_client() is not None else 1
    what = f"lengths of rows of {dim} in a kernel's metric"
    workers = fit_slots(slots, least, fixed, each, memory_budget(memory_limit), what)
    found: NDArray[np.float64] = map_reduce(
        _Task(rows, factor, step), count, step, _beside, workers=workers
    )
    return found


@dataclass(frozen=True, eq=False)
class _Task:
    rows: Rows
    factor: Factor
    step: int

    def __call__(self, start: int, stop: int) -> NDArray[np.float64]:
        found = np.empty(stop - start)
        for low, high in ranges(stop - start, self.step):
            tile = self.rows.read(start + low, start + high).astype(np.float64)
            found[low:high] = np.einsum("ij,ij->i", self.factor.solve(tile), tile)
        if not np.isfinite(found).all():
            raise NumericsError(f"rows {start}..{stop} are not finite: featurize them again")
        return found


def _beside(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([left, right])

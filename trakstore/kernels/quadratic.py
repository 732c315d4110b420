"""φᵀ (K + λI)⁻¹ φ of many rows, in one pass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import NumericsError
from trakstore.kernels.solvers import Factor
from trakstore.passes.memory import fitting_slots, memory_budget
from trakstore.passes.one_pass import Pass, Tiles, beside
from trakstore.passes.rows import Rows
from trakstore.passes.scheduler import tile_rows

__all__ = ["quadratic_form"]

F64 = NDArray[np.float64]


def quadratic_form(rows: Rows, factor: Factor, *, memory_limit: int | str | None = None) -> F64:
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
    each = min(step, count) * dim * (rows.dtype.itemsize + 32)
    fixed = 8 * dim * dim + 16 * count
    what = f"lengths of rows of {dim} in a kernel's metric"
    workers = fitting_slots(fixed, each, memory_budget(memory_limit), what)
    return _LengthPass(step, rows, factor).run(count, workers=workers)


@dataclass(frozen=True, eq=False)
class _LengthPass(Pass[list[F64], F64]):
    rows: Rows
    factor: Factor
    merge = staticmethod(beside)

    def start(self, tiles: Tiles) -> list[F64]:  # noqa: ARG002
        return []

    def visit(self, state: list[F64], low: int, high: int) -> list[F64]:
        tile = self.rows.read(low, high).astype(np.float64)
        found = np.einsum("ij,ij->i", self.factor.solve(tile), tile)
        if not np.isfinite(found).all():
            raise NumericsError(f"rows {low}..{high} are not finite: featurize them again")
        state.append(found)
        return state

    def finish(self, state: list[F64]) -> F64:
        return np.concatenate(state)

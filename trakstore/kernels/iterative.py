"""Solvers that never form the gram: conjugate gradients, and the dual form for few rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve

from trakstore.errors import LARGER_LIMIT, MemoryLimitError, NumericsError
from trakstore.kernels.gram import Kernel
from trakstore.kernels.solvers import (
    F64,
    Damping,
    Factor,
    Form,
    Solver,
    check_condition,
    damping_of,
    lower_triangle,
    need,
    singular,
)
from trakstore.passes.memory import memory_budget
from trakstore.passes.one_pass import ListPass, Pass
from trakstore.passes.rows import Rows
from trakstore.passes.scheduler import task_slots, tile_rows
from trakstore.planning import human_bytes, ranges

EPS = float(np.finfo(np.float64).eps)
# The tiles of all tasks, the sums of all tasks, and the right-hand sides of a solve may each take one
# part in so many of the memory limit.
SHARE = 8
_MOST_SOLVED = 1024  # right-hand sides that are solved at once


@dataclass(frozen=True, eq=False)
class RowsKernel:
    """K = ΦᵀΦ as the rows of Φ: read at each use, never formed.

    Attributes
    ----------
    features : Rows, shape (n, k)
    trace : float
        tr(K).
    limit : int or None
        Limit of passes over the rows, in bytes.
    """

    features: Rows
    trace: float
    limit: int | None = None

    @property
    def rows(self) -> int:
        return self.features.shape[0]

    @property
    def dim(self) -> int:
        return self.features.shape[1]

    @property
    def step(self) -> int:
        """Rows of a tile: fewer than elsewhere where these would not fit."""
        step = tile_rows(self.features)
        if self.limit is None:
            return step
        room = self.limit // (SHARE * task_slots())
        return max(1, min(step, room // (self.dim * _read_bytes(self.features))))

    @property
    def batch(self) -> int:
        """Number of right-hand sides for which there is room in and before a pass."""
        if self.limit is None:
            return _MOST_SOLVED
        room = self.limit // SHARE
        fitting = min(room // (task_slots() * 16 * self.dim), room // (40 * self.dim))
        return max(1, min(_MOST_SOLVED, fitting))

    def solve_bytes(self, count: int) -> int:
        """Return the bytes of passes for so many right-hand sides, with five copies of these."""
        each = self.step * self.dim * _read_bytes(self.features) + 16 * count * self.dim
        return task_slots() * each + 40 * count * self.dim

    def apply(self, values: F64) -> F64:
        """Compute ``values`` K, shapes (m, k) -> (m, k), in one pass over the rows."""
        return self._run(_ApplyPass, values)

    def project(self, values: F64) -> F64:
        """Compute ``values`` Φᵀ, shapes (m, k) -> (m, n)."""
        return self._run(_ProjectPass, values)

    def combine(self, values: F64) -> F64:
        """Compute ``values`` Φ, shapes (m, n) -> (m, k)."""
        return self._run(_CombinePass, values)

    def _run(self, kind: type[_ApplyPass | _ProjectPass], values: F64) -> F64:
        return kind(self.step, self.features, values).run(self.rows)


def _read_bytes(rows: Rows) -> int:
    """Return the bytes of a number in a tile: as read, as a whole chunk, scaled, and as float64."""
    return 2 * rows.dtype.itemsize + 16


def rows_kernel(features: Rows, limit: int | None = None) -> RowsKernel:
    """Return the kernel of stored rows, after one pass for tr(K); passes keep to ``limit`` bytes.

    Raises
    ------
    NumericsError
        When a feature is not finite.
    """
    made = RowsKernel(features, 0.0, limit)
    trace = _TracePass(made.step, features).run(features.shape[0])
    if not np.isfinite(trace):
        raise NumericsError("features hold NaN or inf: featurize them again")
    return replace(made, trace=float(trace))


@dataclass(frozen=True)
class ConjugateGradients(Solver):
    """Conjugate gradients on the stored rows: one pass over them an iteration, no gram.

    For a k whose gram is too large, and a damping that keeps the condition number low: the iterations
    grow with its square root.

    Attributes
    ----------
    tolerance : float
        Norm of the residual, relative to that of the right-hand side, at which a row counts as solved.
    iterations : int
        Most iterations.

    Examples
    --------
    >>> scores = ts.trak_scores(store, solver=ConjugateGradients())
    >>> np.allclose(scores, ts.trak_scores(store), atol=1e-4)
    True
    """

    form: ClassVar[Form] = "rows"
    tolerance: float = 1e-8
    iterations: int = 500

    def factor(self, kernel: Kernel, damping: float | Damping = 1.0) -> GradientFactor:
        rows = need(kernel, RowsKernel, self)
        damped = damping_of(rows, damping)
        bound = (rows.trace + damped) / damped if damped > 0 else float("nan")
        return GradientFactor(rows.dim, damped, bound, rows, self.tolerance, self.iterations)


@dataclass(frozen=True, eq=False)
class GradientFactor(Factor):
    """No factors; ``condition`` is the bound (tr(K) + λ)/λ, NaN without damping."""

    kernel: RowsKernel
    tolerance: float
    iterations: int
    solve_rows: ClassVar[int] = 1024

    def solve(self, rhs: NDArray[np.floating]) -> F64:
        """Solve for each row separately; all rows share the passes.

        Raises
        ------
        NumericsError
            When the iterations do not reach the tolerance.
        """
        # With A = K + λI, residual r and direction p of a right-hand side: α = ‖r‖² / pᵀAp,
        # x += α p, r -= α A p, and the next p is r + ‖r‖² / (the last ‖r‖²) · p.
        residual = np.array(rhs, dtype=np.float64)
        solved, direction = np.zeros_like(residual), residual.copy()
        squared = _squares(residual)
        goal = squared * self.tolerance**2
        for _ in range(self.iterations):
            # Rows that are solved leave, so that their steps do not become 0/0.
            (live,) = np.nonzero(squared > goal)
            if not len(live):
                return solved
            applied = self.kernel.apply(direction[live]) + self.damping * direction[live]
            energy = np.einsum("ij,ij->i", direction[live], applied)
            # pᵀAp is at least the smallest eigenvalue times ‖p‖². If it is below the rounding of the
            # largest eigenvalue, bounded by tr(K) + λ, then A is singular in float64.
            least = self.dim * EPS * (self.kernel.trace + self.damping)
            if (energy <= least * _squares(direction[live])).any():
                raise singular(self.kernel, self.damping)
            step = squared[live] / energy
            solved[live] += step[:, None] * direction[live]
            residual[live] -= step[:, None] * applied
            now = _squares(residual[live])
            direction[live] = residual[live] + (now / squared[live])[:, None] * direction[live]
            squared[live] = now
        if (squared > goal).any():
            raise NumericsError(self._complaint(np.sqrt(squared / goal).max()))
        return solved

    def _complaint(self, excess: float) -> str:
        return (
            f"conjugate gradients left a residual of {excess * self.tolerance:.1e} after "
            f"{self.iterations} passes over the rows, needed {self.tolerance:.1e}: use a larger "
            f"damping, more iterations, or another solver"
        )


def _squares(rows: F64) -> F64:
    """Compute the squared norm of each row."""
    return np.asarray(np.einsum("ij,ij->i", rows, rows))


@dataclass(frozen=True)
class Dual(Solver):
    """The n x n form, for fewer rows than columns:

    (ΦᵀΦ + λI)⁻¹ = (I − Φᵀ (ΦΦᵀ + λI)⁻¹ Φ) / λ, with one step of iterative refinement.

    Examples
    --------
    >>> np.allclose(ts.trak_scores(store, solver=Dual()), ts.trak_scores(store), atol=1e-4)
    True
    """

    form: ClassVar[Form] = "rows"
    memory_limit: int | str | None = None

    def factor(self, kernel: Kernel, damping: float | Damping = 1.0) -> DualFactor:
        rows = need(kernel, RowsKernel, self)
        damped = damping_of(rows, damping)
        # The form divides by λ.
        if damped == 0:
            raise singular(rows, damped)
        matrix = _outer(rows, memory_budget(self.memory_limit))
        condition = (float(np.linalg.norm(matrix, 1)) + damped) / damped
        check_condition(rows, damped, condition, "float64")
        matrix.flat[:: rows.rows + 1] += damped
        lower = lower_triangle(matrix, rows, damped)
        return DualFactor(rows.dim, damped, condition, rows, lower)


@dataclass(frozen=True, eq=False)
class DualFactor(Factor):
    """The lower triangle of ΦΦᵀ + λI; ``condition`` is the bound (‖ΦΦᵀ‖₁ + λ)/λ."""

    kernel: RowsKernel
    lower: F64
    solve_rows: ClassVar[int] = _MOST_SOLVED

    @property
    def most_rows(self) -> int | None:
        batch = self.kernel.batch
        return batch if batch < _MOST_SOLVED else None

    def solve_memory(self, count: int) -> int:
        return self.kernel.solve_bytes(min(count, self.kernel.batch))

    def solve(self, rhs: NDArray[np.floating]) -> F64:
        # A few at a time if memory is short: each pass over the rows holds the sums of all of them.
        if self.most_rows is None or len(rhs) <= self.most_rows:
            return self._solved(rhs)
        solved = np.empty(rhs.shape)
        for low, high in ranges(len(rhs), self.most_rows):
            solved[low:high] = self._solved(rhs[low:high])
        return solved

    def _solved(self, rhs: NDArray[np.floating]) -> F64:
        # (b − Φᵀ…Φ b)/λ loses digits where the two terms are nearly equal. One step of refinement,
        # which solves again for the residual, restores them.
        wanted = np.asarray(rhs, dtype=np.float64)
        solved = self._once(wanted)
        residual = wanted - self.kernel.apply(solved) - self.damping * solved
        return solved + self._once(residual)

    def _once(self, rhs: F64) -> F64:
        inner = self.kernel.project(rhs)
        inner = cho_solve((self.lower, True), inner.T, overwrite_b=True, check_finite=False).T
        return (rhs - self.kernel.combine(inner)) / self.damping


def _outer(kernel: RowsKernel, limit: int) -> F64:
    """Compute ΦΦᵀ by tiles of rows."""
    count, each = kernel.rows, kernel.dim * (_read_bytes(kernel.features) + 8)
    # Two tiles at a time, in this process.
    step = max(1, min(tile_rows(kernel.features), limit // SHARE // each))
    bytes_needed = 8 * count**2 + step * each
    if bytes_needed > limit:
        raise MemoryLimitError(
            f"the dual form of {count} rows needs {human_bytes(bytes_needed)}, the memory limit is "
            f"{human_bytes(limit)}: use another solver or {LARGER_LIMIT}"
        )
    outer, tiles = np.empty((count, count)), list(ranges(count, step))
    for at, (low, high) in enumerate(tiles):
        rows = _tile(kernel.features, low, high)
        for start, stop in tiles[: at + 1]:
            others = rows if start == low else _tile(kernel.features, start, stop)
            outer[low:high, start:stop] = rows @ others.T
            outer[start:stop, low:high] = outer[low:high, start:stop].T
    return outer


def _tile(rows: Rows, start: int, stop: int) -> F64:
    return np.asarray(rows.read(start, stop), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class _TracePass(Pass[float, float]):
    features: Rows

    def start(self) -> float:
        return 0.0

    def visit(self, state: float, low: int, high: int) -> float:
        tile = _tile(self.features, low, high)
        with np.errstate(over="ignore", invalid="ignore"):
            return state + float(np.einsum("ij,ij->", tile, tile))


@dataclass(frozen=True, eq=False)
class _ApplyPass(Pass[F64, F64]):
    """Σ (values Φᵢᵀ) Φᵢ over the tiles Φᵢ, shape (m, k)."""

    features: Rows
    values: F64

    def start(self) -> F64:
        return np.zeros((len(self.values), self.features.shape[1]))

    def visit(self, state: F64, low: int, high: int) -> F64:
        tile = _tile(self.features, low, high)
        state += (self.values @ tile.T) @ tile
        return state


class _CombinePass(_ApplyPass):
    """``values`` Φ, shapes (m, n) -> (m, k)."""

    def visit(self, state: F64, low: int, high: int) -> F64:
        state += self.values[:, low:high] @ _tile(self.features, low, high)
        return state


@dataclass(frozen=True, eq=False)
class _ProjectPass(ListPass):
    """``values`` Φᵀ, shape (m, n)."""

    features: Rows
    values: F64

    def tile(self, low: int, high: int) -> F64:
        return self.values @ _tile(self.features, low, high).T

"""Solvers that never form the gram: conjugate gradients, and the dual form for few rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from trakstore.errors import LARGER_LIMIT, MemoryLimitError, NumericsError
from trakstore.kernels.gram import Kernel
from trakstore.kernels.solvers import Damping, Factor, Form, Solver, check_condition, need, singular
from trakstore.passes.memory import memory_budget
from trakstore.passes.one_pass import Pass, Tiles, beside
from trakstore.passes.rows import Rows
from trakstore.passes.scheduler import tile_rows
from trakstore.planning import human_bytes, ranges

__all__ = ["ConjugateGradients", "Dual", "RowsKernel", "rows_kernel"]

F64 = NDArray[np.float64]
EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, eq=False)
class RowsKernel:
    """K = ΦᵀΦ as the rows of Φ: read at each use, never formed.

    Attributes
    ----------
    features : Rows, shape (n, k)
    trace : float
        tr(K).
    """

    features: Rows
    trace: float

    @property
    def rows(self) -> int:
        return self.features.shape[0]

    @property
    def dim(self) -> int:
        return self.features.shape[1]

    def apply(self, values: F64) -> F64:
        """``values`` K, shapes (m, k) -> (m, k), in one pass over the rows."""
        return self._run(_ApplyPass, values)

    def project(self, values: F64) -> F64:
        """``values`` Φᵀ, shapes (m, k) -> (m, n)."""
        return self._run(_ProjectPass, values)

    def combine(self, values: F64) -> F64:
        """``values`` Φ, shapes (m, n) -> (m, k)."""
        return self._run(_CombinePass, values)

    def _run(self, kind: type[_ApplyPass | _ProjectPass], values: F64) -> F64:
        return kind(tile_rows(self.features), self.features, values).run(self.rows)


def rows_kernel(features: Rows) -> RowsKernel:
    """The kernel of stored rows; one pass for tr(K).

    Raises
    ------
    NumericsError
        When a feature is not finite.
    """
    trace = _TracePass(tile_rows(features), features).run(features.shape[0])
    if not np.isfinite(trace):
        raise NumericsError("features hold NaN or inf: featurize them again")
    return RowsKernel(features, float(trace))


@dataclass(frozen=True)
class ConjugateGradients(Solver):
    """Conjugate gradients on the stored rows: one pass over them an iteration, no gram.

    For a k whose gram is too large, at a damping that keeps the condition number low: iterations
    grow with its square root.

    Attributes
    ----------
    tolerance : float
        Of the residual's norm, relative to the right-hand side's; each row has its own.
    iterations : int
        At most.
    """

    form: ClassVar[Form] = "rows"
    tolerance: float = 1e-8
    iterations: int = 500

    def factor(self, kernel: Kernel, damping: float | Damping = 1.0) -> GradientFactor:
        rows = need(kernel, RowsKernel, self)
        damped = Damping.of(damping).value(rows.trace, rows.rows)
        if rows.trace == 0 or (damped == 0 and rows.rows < rows.dim):
            raise singular(rows, damped)
        bound = (rows.trace + damped) / damped if damped > 0 else float("nan")
        return GradientFactor(rows, damped, bound, self.tolerance, self.iterations)


@dataclass(frozen=True, eq=False)
class GradientFactor(Factor):
    """Nothing factored; ``condition`` is the bound (tr(K) + λ)/λ, NaN without damping."""

    kernel: RowsKernel
    damping: float
    condition: float
    tolerance: float
    iterations: int
    solve_rows: ClassVar[int] = 1024

    @property
    def dim(self) -> int:
        return self.kernel.dim

    def solve(self, rhs: NDArray[np.floating]) -> F64:
        """Raises :class:`NumericsError` when the iterations do not reach the tolerance."""
        left = np.array(rhs, dtype=np.float64)
        solved, towards = np.zeros_like(left), left.copy()
        squared = np.einsum("ij,ij->i", left, left)
        goal = squared * self.tolerance**2
        for _ in range(self.iterations):
            (live,) = np.nonzero(squared > goal)
            if not len(live):
                return solved
            applied = self.kernel.apply(towards[live]) + self.damping * towards[live]
            energy = np.einsum("ij,ij->i", towards[live], applied)
            size = np.einsum("ij,ij->i", towards[live], towards[live])
            if (energy <= self.dim * EPS * (self.kernel.trace + self.damping) * size).any():
                raise singular(self.kernel, self.damping)
            step = squared[live] / energy
            solved[live] += step[:, None] * towards[live]
            left[live] -= step[:, None] * applied
            now = np.einsum("ij,ij->i", left[live], left[live])
            towards[live] = left[live] + (now / squared[live])[:, None] * towards[live]
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


@dataclass(frozen=True)
class Dual(Solver):
    """The n x n form, for fewer rows than columns:

    (ΦᵀΦ + λI)⁻¹ = (I − Φᵀ (ΦΦᵀ + λI)⁻¹ Φ) / λ, with one step of iterative refinement.
    """

    form: ClassVar[Form] = "rows"
    memory_limit: int | str | None = None

    def factor(self, kernel: Kernel, damping: float | Damping = 1.0) -> DualFactor:
        rows = need(kernel, RowsKernel, self)
        damped = Damping.of(damping).value(rows.trace, rows.rows)
        if damped == 0 or rows.trace == 0:
            raise singular(rows, damped)
        matrix = _outer(rows, memory_budget(self.memory_limit))
        size = float(np.linalg.norm(matrix, 1))
        check_condition(rows, damped, (size + damped) / damped, "float64")
        matrix.flat[:: rows.rows + 1] += damped
        try:
            lower, _ = cho_factor(matrix.T, lower=True, overwrite_a=True, check_finite=False)
        except LinAlgError:
            raise singular(rows, damped) from None
        return DualFactor(rows, lower, damped, (size + damped) / damped)


@dataclass(frozen=True, eq=False)
class DualFactor(Factor):
    """The lower triangle of ΦΦᵀ + λI; ``condition`` is the bound (‖ΦΦᵀ‖₁ + λ)/λ."""

    kernel: RowsKernel
    lower: F64
    damping: float
    condition: float
    solve_rows: ClassVar[int] = 1024

    @property
    def dim(self) -> int:
        return self.kernel.dim

    @property
    def memory(self) -> int:
        return self.lower.nbytes

    def solve(self, rhs: NDArray[np.floating]) -> F64:
        wanted = np.asarray(rhs, dtype=np.float64)
        solved = self._once(wanted)
        missed = wanted - self.kernel.apply(solved) - self.damping * solved
        return solved + self._once(missed)

    def _once(self, rhs: F64) -> F64:
        inner = self.kernel.project(rhs)
        inner = cho_solve((self.lower, True), inner.T, overwrite_b=True, check_finite=False).T
        return (rhs - self.kernel.combine(inner)) / self.damping


def _outer(kernel: RowsKernel, limit: int) -> F64:
    """ΦΦᵀ by tiles of rows."""
    count, step = kernel.rows, tile_rows(kernel.features)
    bytes_needed = 8 * count**2 + 2 * 12 * step * kernel.dim
    if bytes_needed > limit:
        raise MemoryLimitError(
            f"the dual form of {count} rows needs {human_bytes(bytes_needed)}, the memory limit is "
            f"{human_bytes(limit)}: use another solver or {LARGER_LIMIT}"
        )
    found, tiles = np.empty((count, count)), list(ranges(count, step))
    for at, (low, high) in enumerate(tiles):
        rows = _tile(kernel.features, low, high)
        for start, stop in tiles[: at + 1]:
            others = rows if start == low else _tile(kernel.features, start, stop)
            found[low:high, start:stop] = rows @ others.T
            found[start:stop, low:high] = found[low:high, start:stop].T
    return found


def _tile(rows: Rows, start: int, stop: int) -> F64:
    return np.asarray(rows.read(start, stop), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class _TracePass(Pass[float, float]):
    features: Rows

    def start(self, tiles: Tiles) -> float:  # noqa: ARG002
        return 0.0

    def visit(self, state: float, low: int, high: int) -> float:
        tile = _tile(self.features, low, high)
        with np.errstate(over="ignore", invalid="ignore"):
            return state + float(np.einsum("ij,ij->", tile, tile))


@dataclass(frozen=True, eq=False)
class _ApplyPass(Pass[F64, F64]):
    """Σ (values Φᵢᵀ) Φᵢ, shape (m, k)."""

    features: Rows
    values: F64

    def start(self, tiles: Tiles) -> F64:  # noqa: ARG002
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
class _ProjectPass(Pass[list[F64], F64]):
    """``values`` Φᵀ, shape (m, n)."""

    features: Rows
    values: F64
    merge = staticmethod(beside)

    def start(self, tiles: Tiles) -> list[F64]:  # noqa: ARG002
        return []

    def visit(self, state: list[F64], low: int, high: int) -> list[F64]:
        state.append(self.values @ _tile(self.features, low, high).T)
        return state

    def finish(self, state: list[F64]) -> F64:
        return np.concatenate(state, axis=-1)

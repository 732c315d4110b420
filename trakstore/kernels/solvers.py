"""Damped kernels, factored once in float64 and solved many times; never inverted to multiply.

Each solver names the form of the kernel that it needs; ``trakstore.kernels.choice`` makes that form.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve, eigh
from scipy.linalg.lapack import dpocon

from trakstore.errors import NumericsError, TrakStoreError
from trakstore.kernels.gram import Gram, Kernel
from trakstore.passes.sent import Sent
from trakstore.quantities import as_number

F64: TypeAlias = NDArray[np.float64]
Form: TypeAlias = Literal["matrix", "rows", "tiles"]
K = TypeVar("K")

# Noise in a gram, relative to the largest eigenvalue: about 1e-7 from float32 products, 1e-15 from
# float64.
CONDITION_LIMIT = 1e7
CONDITION_LIMITS = {"float32": CONDITION_LIMIT, "float64": 1e13}


class IllConditionedWarning(UserWarning):
    """A kernel whose smallest eigenvalues are below the rounding noise of its sums."""


@dataclass(frozen=True)
class Damping:
    """λ, added to the unnormalised K = ΦᵀΦ.

    Parameters
    ----------
    relative : float, optional
        c in λ = c·tr(K)/n, in units of the mean squared norm of a row: this scale holds for any number
        of rows and dimensions. By default 1.
    absolute : float, optional
        λ itself, instead of ``relative``.

    Raises
    ------
    TrakStoreError
        When a value is negative or not finite, or both are given.

    Examples
    --------
    >>> Damping(0.5).value(trace=8.0, rows=4)
    1.0
    >>> Damping(absolute=1e-3).value(trace=8.0, rows=4)
    0.001
    """

    relative: float | None = None
    absolute: float | None = None

    def __post_init__(self) -> None:
        if self.relative is not None and self.absolute is not None:
            raise TrakStoreError(
                f"damping is relative or absolute, got both: {self.relative!r} and {self.absolute!r}"
            )
        name = "relative" if self.absolute is None else "absolute"
        value = getattr(self, name)
        number = 1.0 if value is None else _damping(value)
        object.__setattr__(self, name, number)

    @staticmethod
    def of(value: float | Damping) -> Damping:
        """Return ``value`` itself, or a plain number as the relative c."""
        return value if isinstance(value, Damping) else Damping(_damping(value))

    def value(self, trace: float, rows: int) -> float:
        """Return λ for a kernel with this trace over this many rows."""
        if self.relative is None:
            return self.absolute or 0.0
        return self.relative * trace / rows


def _damping(value: object) -> float:
    return as_number(value, "damping", least=0, needed="must be a finite number >= 0")


@dataclass(frozen=True, eq=False)
class Factor(Sent, ABC):
    """K + λI, factored.

    Attributes
    ----------
    dim : int
        k.
    damping : float
        λ.
    condition : float
        Condition number of K + λI, as estimated or bounded by the solver.
    solve_rows : int
        Rows that one solve should have if each solve reads from disk; otherwise 1.

    Examples
    --------
    >>> from trakstore.kernels import factor_split
    >>> factor = factor_split(store.split(15, "train"))
    >>> factor.dim, factor.solve(np.eye(8)[:2]).shape
    (8, (2, 8))
    """

    dim: int
    damping: float
    condition: float
    solve_rows: ClassVar[int] = 1

    @property
    def memory(self) -> int:
        """Bytes of the arrays that the factor holds."""
        return sum(one.nbytes for one in vars(self).values() if isinstance(one, np.ndarray))

    @property
    def most_rows(self) -> int | None:
        """Most rows for one solve within the memory limit."""
        return None

    def solve_memory(self, count: int) -> int:  # noqa: ARG002
        """Return the bytes that solving ``count`` rows takes, with the rows and four copies of them."""
        return 0

    @abstractmethod
    def solve(self, rhs: NDArray[np.floating]) -> F64:
        """Compute ``rhs`` (K + λI)⁻¹, shapes (m, k) -> (m, k), in float64."""


class Solver(ABC):
    """A way to factor a damped kernel.

    Attributes
    ----------
    form : {"matrix", "rows", "tiles"}
        Form of the kernel that ``factor`` takes: a ``Gram``, a ``RowsKernel`` or a ``TiledGram``.

    Examples
    --------
    >>> isinstance(Cholesky(), Solver)
    True
    """

    form: ClassVar[Form] = "matrix"

    @abstractmethod
    def factor(self, kernel: Kernel, damping: float | Damping = 1.0) -> Factor:
        """Factor K + λI.

        Raises
        ------
        NumericsError
            When K + λI is singular in float64.
        TrakStoreError
            When the kernel has another form.
        """


def need(kernel: Kernel, kind: type[K], solver: Solver) -> K:
    """Return the kernel if it has the form that a solver needs; raise otherwise."""
    if isinstance(kernel, kind):
        return kernel
    raise TrakStoreError(
        f"{type(solver).__name__} works on a {kind.__name__}, got a {type(kernel).__name__}"
    )


def damping_of(kernel: Kernel, damping: float | Damping) -> float:
    """Return λ; refuse λ = 0 where K cannot have full rank."""
    damped = Damping.of(damping).value(kernel.trace, kernel.rows)
    if damped == 0 and (kernel.trace == 0 or kernel.rows < kernel.dim):
        raise singular(kernel, damped)
    return damped


def lower_triangle(matrix: F64, kernel: Kernel, damped: float) -> F64:
    """Factor a symmetric matrix, which includes λ, into L Lᵀ, in place.

    The triangle above the diagonal of the result has no meaning.
    """
    # LAPACK needs Fortran order. The transposed view of a symmetric matrix is the same matrix in that
    # order, so that nothing is copied.
    try:
        lower, _ = cho_factor(matrix.T, lower=True, overwrite_a=True, check_finite=False)
    except LinAlgError:
        raise singular(kernel, damped) from None
    return np.asarray(lower)


@dataclass(frozen=True, eq=False)
class CholeskyFactor(Factor):
    """The lower triangle of K + λI = L Lᵀ."""

    lower: F64

    def solve(self, rhs: NDArray[np.floating]) -> F64:
        # Rows in C order are columns in Fortran order, which LAPACK solves in place.
        columns = np.array(rhs, dtype=np.float64, order="C").T
        solved = cho_solve((self.lower, True), columns, overwrite_b=True, check_finite=False)
        return np.asarray(solved.T)


@dataclass(frozen=True)
class Cholesky(Solver):
    """Cholesky in float64 (LAPACK ``potrf``), with LAPACK's estimate of the condition number.

    Examples
    --------
    >>> from trakstore.kernels.gram import Gram, Kernel
    >>> kernel = Gram(np.diag([3.0, 1.0]), rows=4, trace=4.0)
    >>> Cholesky().factor(kernel, 1.0).solve(np.ones((1, 2)))
    array([[0.25, 0.5 ]])
    """

    def factor(self, kernel: Kernel, damping: float | Damping = 1.0) -> CholeskyFactor:
        gram = need(kernel, Gram, self)
        damped = damping_of(gram, damping)
        matrix = gram.matrix.copy()
        matrix.flat[:: gram.dim + 1] += damped
        size = float(np.linalg.norm(matrix, 1))
        lower = lower_triangle(matrix, gram, damped)
        reciprocal, _ = dpocon(lower, size, uplo="L")
        condition = 1 / float(reciprocal) if reciprocal > 0 else math.inf
        check_condition(gram, damped, condition, gram.dtype)
        return CholeskyFactor(gram.dim, damped, condition, lower)


@dataclass(frozen=True, eq=False)
class EigenFactor(Factor):
    """K = V diag(σ) Vᵀ, and λ.

    Attributes
    ----------
    values : ndarray of float64, shape (k,)
        σ, ascending.
    vectors : ndarray of float64, shape (k, k)
        V, one eigenvector a column.
    gram : Gram
        K itself.
    """

    values: F64
    vectors: F64
    gram: Gram

    @property
    def memory(self) -> int:
        return super().memory + self.gram.matrix.nbytes

    def at(self, damping: float | Damping) -> EigenFactor:
        """Return the same kernel at another damping, at no cost.

        Raises
        ------
        NumericsError
            When K + λI is singular there.
        """
        return _eigen_factor(self.gram, self.values, self.vectors, damping)

    def solve(self, rhs: NDArray[np.floating]) -> F64:
        turned = np.asarray(rhs, dtype=np.float64) @ self.vectors
        turned /= self.values + self.damping
        return turned @ self.vectors.T


@dataclass(frozen=True)
class Eigen(Solver):
    """Eigendecomposition in float64: gives the spectrum, and every damping without further work.

    It takes about ten times as long as Cholesky; ``factor(...).at(damping)`` is then free.

    Examples
    --------
    >>> from trakstore.kernels.gram import Gram
    >>> factor = Eigen().factor(Gram(np.diag([3.0, 1.0]), rows=4, trace=4.0), 1.0)
    >>> factor.at(3.0).solve(np.ones((1, 2))).round(4)
    array([[0.1667, 0.25  ]])
    """

    def factor(self, kernel: Kernel, damping: float | Damping = 1.0) -> EigenFactor:
        gram = need(kernel, Gram, self)
        values, vectors = eigh(gram.matrix, check_finite=False)
        return _eigen_factor(gram, values, vectors, damping)


def _eigen_factor(gram: Gram, values: F64, vectors: F64, damping: float | Damping) -> EigenFactor:
    damped = damping_of(gram, damping)
    # Rounding may make small eigenvalues negative.
    least = float(values[0]) + damped
    if least <= 0:
        raise singular(gram, damped)
    condition = (float(values[-1]) + damped) / least
    check_condition(gram, damped, condition, gram.dtype)
    return EigenFactor(gram.dim, damped, condition, values, vectors, gram)


def check_condition(kernel: Kernel, damped: float, condition: float, dtype: str) -> None:
    """Refuse kernels that float64 cannot solve; warn of those whose own rounding shows.

    Raises
    ------
    NumericsError
        When the condition number is above 1/(k·eps).
    """
    # Written in this way so that NaN is refused too.
    if not condition * kernel.dim * np.finfo(np.float64).eps < 1:
        raise singular(kernel, damped)
    if condition > CONDITION_LIMITS[dtype]:
        message = (
            f"K + λI has condition number {condition:.1e} at λ={damped:.3g} (k={kernel.dim}, "
            f"n={kernel.rows}): small directions are rounding noise; {_remedy(kernel, damped)}"
        )
        if dtype == "float32":
            message += "; or gram_dtype='float64'"
        warnings.warn(message, IllConditionedWarning, stacklevel=4)


def singular(kernel: Kernel, damped: float) -> NumericsError:
    """Return the error for a kernel that cannot be factored at this λ."""
    if kernel.trace == 0:
        return NumericsError(
            f"K is zero: all {kernel.rows} rows are zero, or so small that float32 does not hold them "
            f"times their weights; no damping relative to it can help"
        )
    why = "dependent or zero columns"
    if kernel.rows < kernel.dim:
        why = f"k={kernel.dim} > n={kernel.rows}"
    return NumericsError(f"K + λI is singular at λ={damped:.3g}: {why}; {_remedy(kernel, damped)}")


def _remedy(kernel: Kernel, damped: float) -> str:
    unit = kernel.trace / kernel.rows
    if damped < 0.1 * unit:
        return f"use damping > 0, for example damping=1.0 (λ={unit:.3g})"
    return "use a larger damping, or fewer dimensions"

"""Damped kernels: factored once in float64, solved many times, never inverted."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.linalg.lapack import dpocon

from trakstore.errors import NumericsError, TrakStoreError
from trakstore.linalg.gram import Gram

__all__ = [
    "CONDITION_LIMIT",
    "Cholesky",
    "Damping",
    "Factor",
    "IllConditionedWarning",
    "Solver",
]

# float32 products leave noise of about 1e-7 of the largest eigenvalue in a gram
CONDITION_LIMIT = 1e7


class IllConditionedWarning(UserWarning):
    """A kernel whose smallest eigenvalues are below the noise of its own sums."""


@dataclass(frozen=True)
class Damping:
    """λ, added to the unnormalised K = ΦᵀΦ.

    Parameters
    ----------
    relative : float
        c of λ = c·tr(K)/n: in units of the mean squared norm of a row, the scale that carries over
        between numbers of rows and dimensions.
    absolute : float, optional
        λ itself; when given, ``relative`` is not looked at.

    Raises
    ------
    TrakStoreError
        A negative or non-finite value.

    Examples
    --------
    >>> Damping(0.5).value(trace=8.0, rows=4)
    1.0
    >>> Damping(absolute=1e-3).value(trace=8.0, rows=4)
    0.001
    """

    relative: float = 1.0
    absolute: float | None = None

    def __post_init__(self) -> None:
        for value in (self.relative, 0 if self.absolute is None else self.absolute):
            if not _is_damping(value):
                raise TrakStoreError(f"damping must be a finite number >= 0, got {value!r}")

    @staticmethod
    def of(value: float | Damping) -> Damping:
        """``value`` itself, or a plain number as the relative c."""
        return value if isinstance(value, Damping) else Damping(value)

    def value(self, trace: float, rows: int) -> float:
        """λ for a kernel with this trace over this many rows."""
        if self.absolute is not None:
            return float(self.absolute)
        return float(self.relative) * trace / rows


def _is_damping(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        return False
    return bool(math.isfinite(value) and value >= 0)


class Factor(ABC):
    """K + λI, factored.

    Attributes
    ----------
    damping : float
        λ.
    condition : float
        Condition number of K + λI (an estimate, in the 1-norm).
    """

    damping: float
    condition: float

    @abstractmethod
    def solve(self, rhs: NDArray[np.floating]) -> NDArray[np.float64]:
        """``rhs`` (K + λI)⁻¹, shapes (m, k) -> (m, k), in float64."""


class Solver(ABC):
    """A way to factor a damped kernel."""

    @abstractmethod
    def factor(self, gram: Gram, damping: float | Damping = 1.0) -> Factor:
        """Factor K + λI.

        Raises
        ------
        NumericsError
            When K + λI is singular in float64.
        """


@dataclass(frozen=True, eq=False)
class CholeskyFactor(Factor):
    """The lower triangle of K + λI = L Lᵀ."""

    lower: NDArray[np.float64]
    damping: float
    condition: float

    def solve(self, rhs: NDArray[np.floating]) -> NDArray[np.float64]:
        columns = np.array(rhs, dtype=np.float64, order="C").T  # Fortran order: solved in place
        solved = cho_solve((self.lower, True), columns, overwrite_b=True, check_finite=False)
        return np.asarray(solved.T)


@dataclass(frozen=True)
class Cholesky(Solver):
    """Cholesky in float64 (LAPACK ``potrf``), with LAPACK's estimate of the condition number.

    Examples
    --------
    >>> from trakstore.linalg.gram import Gram
    >>> kernel = Gram(np.diag([3.0, 1.0]), rows=4, trace=4.0)
    >>> Cholesky().factor(kernel, 1.0).solve(np.ones((1, 2)))
    array([[0.25, 0.5 ]])
    """

    def factor(self, gram: Gram, damping: float | Damping = 1.0) -> CholeskyFactor:
        damped = Damping.of(damping).value(gram.trace, gram.rows)
        if damped == 0 and gram.rows < gram.dim:
            raise NumericsError(_singular(gram, damped))
        matrix = gram.matrix.copy()
        matrix.flat[:: gram.dim + 1] += damped
        size = float(np.linalg.norm(matrix, 1))
        try:  # K is symmetric: the transposed view is the same matrix in Fortran order
            lower, _ = cho_factor(matrix.T, lower=True, overwrite_a=True, check_finite=False)
        except LinAlgError:
            raise NumericsError(_singular(gram, damped)) from None
        reciprocal, _ = dpocon(lower, size, uplo="L")
        if reciprocal < gram.dim * np.finfo(np.float64).eps:
            raise NumericsError(_singular(gram, damped))
        if 1 / reciprocal > CONDITION_LIMIT:
            warnings.warn(
                _nearly(gram, damped, 1 / reciprocal), IllConditionedWarning, stacklevel=2
            )
        return CholeskyFactor(lower, damped, 1 / float(reciprocal))


def _singular(gram: Gram, damped: float) -> str:
    if gram.trace == 0:
        return f"K is zero: all {gram.rows} rows are zero, no damping relative to it can help"
    why = f"k={gram.dim} > n={gram.rows}" if gram.rows < gram.dim else "dependent or zero columns"
    return f"K + λI is singular at λ={damped:.3g}: {why}; {_remedy(gram, damped)}"


def _nearly(gram: Gram, damped: float, condition: float) -> str:
    return (
        f"K + λI has condition number {condition:.1e} at λ={damped:.3g} (k={gram.dim}, "
        f"n={gram.rows}): small directions are rounding noise; {_remedy(gram, damped)}"
    )


def _remedy(gram: Gram, damped: float) -> str:
    unit = gram.trace / gram.rows
    if damped < 0.1 * unit:
        return f"use damping > 0, for example damping=1.0 (λ={unit:.3g})"
    return "use a larger damping, or fewer dimensions"

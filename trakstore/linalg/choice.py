"""Which solver a split gets, and the kernel in the form that the solver takes."""

from __future__ import annotations

from trakstore.errors import MemoryLimitError
from trakstore.linalg.blocked import BlockedCholesky
from trakstore.linalg.gram import GramDtype, Kernel
from trakstore.linalg.grams import split_gram
from trakstore.linalg.iterative import Dual, rows_kernel
from trakstore.linalg.memory import memory_budget
from trakstore.linalg.solvers import Cholesky, Damping, Factor, Form, Solver
from trakstore.linalg.tiled import split_tiles
from trakstore.linalg.weights import GramSplit, kernel_rows, unmasked_count
from trakstore.storage import layout

__all__ = ["choose_solver", "factor_split", "split_kernel"]


def factor_split(
    split: GramSplit,
    damping: float | Damping = 1.0,
    *,
    solver: Solver | None = None,
    dtype: GramDtype = "float32",
    memory_limit: int | str | None = None,
) -> Factor:
    """K + λI of a split's features, factored.

    Parameters
    ----------
    split : Split
        Complete.
    damping : float or Damping
    solver : Solver, optional
        :func:`choose_solver` when None.
    dtype : {"float32", "float64"}
        Of the products within a tile of the gram.
    memory_limit : int or str, optional
        Bytes of one process.

    Raises
    ------
    NumericsError
        Features that are not finite, or a kernel that is singular at this damping.
    MemoryLimitError
        The kernel does not fit in any form.
    """
    damped = Damping.of(damping)
    solver = solver or choose_solver(split, damped, memory_limit)
    kernel = split_kernel(split, solver.form, dtype=dtype, memory_limit=memory_limit)
    return solver.factor(kernel, damped)


def choose_solver(
    split: GramSplit, damping: Damping, memory_limit: int | str | None = None
) -> Solver:
    """Dual for fewer rows than columns, blocked for what does not fit, else Cholesky."""
    rows, dim = unmasked_count(split), split.column(layout.FEATURES).shape[1]
    limit = memory_budget(memory_limit)
    damped = damping.absolute != 0 if damping.absolute is not None else damping.relative != 0
    if rows < dim and damped and 8 * rows**2 < limit // 2:
        return Dual(memory_limit)
    # the gram, its factor, and the sums and products of two tasks, all k x k
    return Cholesky() if 40 * dim**2 < limit else BlockedCholesky(memory_limit)


def split_kernel(
    split: GramSplit,
    form: Form,
    *,
    dtype: GramDtype = "float32",
    memory_limit: int | str | None = None,
) -> Kernel:
    """The kernel of a split in the form that a solver takes."""
    if form == "tiles":
        return split_tiles(split, dtype=dtype, memory_limit=memory_limit)
    if form == "matrix":
        try:
            return split_gram(split, dtype=dtype, memory_limit=memory_limit)
        except MemoryLimitError as error:
            raise MemoryLimitError(f"{error}, or solver=BlockedCholesky()") from None
    return rows_kernel(kernel_rows(split))

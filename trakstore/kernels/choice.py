"""Choice of a solver for a split's rows, and of the form of the kernel that it takes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from trakstore.errors import MemoryLimitError, TrakStoreError
from trakstore.kernels.blocked_cholesky import BlockedCholesky
from trakstore.kernels.gram import GramDtype, Kernel, check_gram_dtype, gram
from trakstore.kernels.iterative import Dual, rows_kernel
from trakstore.kernels.row_weights import KernelSplit, kernel_rows, unmasked_count
from trakstore.kernels.solvers import Cholesky, Damping, Factor, Form, Solver
from trakstore.kernels.stored_grams import GramInMemory, split_gram
from trakstore.kernels.tiled_gram import Scratch, split_tiles, tiled_gram
from trakstore.passes.memory import memory_budget
from trakstore.passes.rows import Rows
from trakstore.storage import layout
from trakstore.storage.dropped_rows import dropped_error


def factor_split(
    split: KernelSplit,
    damping: float | Damping = 1.0,
    *,
    solver: Solver | None = None,
    dtype: GramDtype = "float32",
    memory_limit: int | str | None = None,
    held: int = 0,
    ready: GramInMemory | None = None,
    device: str = "cpu",
) -> Factor:
    """Factor K + λI of a split's features.

    Parameters
    ----------
    split : Split
        A complete split.
    damping : float or Damping
    solver : Solver, optional
        By shape and memory when None, as in :func:`~trakstore.trak_scores`.
    dtype : {"float32", "float64"}
        Dtype of the products within a tile of the gram.
    memory_limit : int or str, optional
        Bytes of one process; a quarter of the available memory when None.
    held : int
        Bytes of the memory limit that other factors take, which are kept.
    ready : GramInMemory, optional
        Stored gram of the split, if it was read already.
    device : str
        Device for the gram's products and sums, such as ``"cuda"``; solvers run on the CPU.

    Raises
    ------
    NumericsError
        When features are not finite, or the kernel is singular at this damping.
    MemoryLimitError
        When the kernel does not fit in any form.

    Examples
    --------
    >>> factor = factor_split(store.split(15, "train"), damping=0.1)
    >>> type(factor).__name__, factor.dim, round(factor.condition)
    ('CholeskyFactor', 8, 73)
    """
    damped, limit = Damping.of(damping), memory_budget(memory_limit)
    need_solver(solver)
    solver = solver or solver_of(split, damped, limit, held)
    left = max(1, limit - held)
    kernel = split_kernel(
        split, solver.form, dtype=dtype, memory_limit=left, ready=ready, device=device
    )
    return solver.factor(kernel, damped)


def factor_rows(
    rows: Rows,
    damping: float | Damping = 1.0,
    *,
    solver: Solver | None = None,
    dtype: GramDtype = "float32",
    memory_limit: int | str | None = None,
) -> Factor:
    """Factor K + λI of rows that are in no store, as :func:`factor_split` does.

    A gram that does not fit the memory limit goes to a temporary folder while it is in use.
    """
    damped = Damping.of(damping)
    need_solver(solver)
    check_gram_dtype(dtype)
    solver = solver or choose_solver(rows.shape[0], rows.shape[1], damped, memory_limit)
    options: Any = {"dtype": dtype, "memory_limit": memory_limit}
    limit = memory_budget(memory_limit)
    kernel: Kernel
    # The folder lives as long as the kernel, and is removed with it.
    if solver.form == "tiles":
        scratch = Scratch()
        kernel = replace(
            tiled_gram(rows, None, scratch.location, "gram", **options), scratch=scratch
        )
    else:
        kernel = gram(rows, **options) if solver.form == "matrix" else rows_kernel(rows, limit)
    return solver.factor(kernel, damped)


def need_solver(solver: Solver | None) -> None:
    """Raise a :class:`TrakStoreError` for anything but a solver."""
    if not isinstance(solver, Solver | None):
        raise TrakStoreError(
            f"solver must be a Solver of trakstore.kernels, such as Cholesky(), or None, got {solver!r}"
        )


def solver_of(split: KernelSplit, damping: Damping, limit: int, held: int = 0) -> Solver:
    """Choose a solver for a split; if its rows were dropped, one that takes the stored gram."""
    dim = split.column(layout.FEATURES).shape[1]
    rows = dim if split.dropped else unmasked_count(split)
    return choose_solver(rows, dim, damping, limit, held)


def keep_gram(split: KernelSplit, *, memory_limit: int | str | None = None) -> None:
    """Compute the gram of a split and store it, unless a valid one is stored."""
    dim, limit = split.column(layout.FEATURES).shape[1], memory_budget(memory_limit)
    # The choice is made for as many rows as columns: with fewer it might be a solver that takes the
    # rows themselves, and no gram would be stored.
    form = choose_solver(dim, dim, Damping.of(1.0), limit).form
    split_kernel(split, form, memory_limit=limit)


def choose_solver(
    rows: int, dim: int, damping: Damping, memory_limit: int | str | None = None, held: int = 0
) -> Solver:
    """Choose Dual for fewer rows than columns, blocked for what does not fit, else Cholesky.

    A factor in memory, with the ``held`` bytes of others, takes at most a quarter of the limit, or half
    of it if it is the only one. A dual factor may always take half: the gram that would replace it on
    disk has more columns than the split has rows.
    """
    limit = memory_budget(memory_limit)
    left, share = limit - held, limit // 4 if held else limit // 2
    damped = damping.absolute != 0 if damping.absolute is not None else damping.relative != 0
    # The dual form divides by λ, and has n x n numbers instead of k x k.
    if rows < dim and damped and held + 8 * rows**2 < limit // 2:
        return Dual(left)
    # All are k x k: the gram, its factor, and the sums and products of two tasks.
    fits = 40 * dim**2 < left and held + 8 * dim**2 < share
    return Cholesky() if fits else BlockedCholesky(left)


def split_kernel(
    split: KernelSplit,
    form: Form,
    *,
    dtype: GramDtype = "float32",
    memory_limit: int | str | None = None,
    ready: GramInMemory | None = None,
    device: str = "cpu",
) -> Kernel:
    """Return the kernel of a split in the form that a solver takes."""
    check_gram_dtype(dtype)
    if form == "tiles":
        return split_tiles(split, dtype=dtype, memory_limit=memory_limit)
    if form == "matrix":
        try:
            return split_gram(
                split, dtype=dtype, memory_limit=memory_limit, ready=ready, device=device
            )
        except MemoryLimitError as error:
            raise MemoryLimitError(
                f"{error}, or solver=BlockedCholesky() (from trakstore.kernels import BlockedCholesky)"
            ) from None
    if split.dropped:
        why = "this solver takes the rows: give Cholesky() or BlockedCholesky(), or none"
        raise dropped_error(layout.split_path(split.epoch, split.name), why)
    return rows_kernel(kernel_rows(split), memory_budget(memory_limit))

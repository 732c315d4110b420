"""Cholesky out of core: panels of columns in memory, tiles in Zarr, blocked triangular solves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import zarr
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cholesky, solve_triangular
from scipy.linalg.blas import dgemm, dtrsm

from trakstore.errors import LARGER_LIMIT, MemoryLimitError
from trakstore.kernels.gram import Kernel
from trakstore.kernels.solvers import (
    F64,
    Damping,
    Factor,
    Form,
    Solver,
    check_condition,
    damping_of,
    need,
    singular,
)
from trakstore.kernels.tiled_gram import Scratch, TiledGram
from trakstore.passes.memory import give_back, memory_budget
from trakstore.planning import human_bytes, ranges, with_slack
from trakstore.storage.tables.table_array import TableArray


@dataclass(frozen=True)
class BlockedCholesky(Solver):
    """K + λI = L Lᵀ with K and L in Zarr tiles: left-looking, one panel of columns in memory.

    Each panel is read once, reduced by the panels before it tile by tile, and written once; L is read
    about panels/2 times in all.

    Attributes
    ----------
    memory_limit : int or str, optional
        Bytes of one process; a quarter of what is available when None.
    scratch : str, optional
        Folder for L while it is in use; the system's folder for temporary files when None.

    Examples
    --------
    >>> ts.trak_scores(store, solver=BlockedCholesky(memory_limit="2GB"))
    <Scores trak (target: 6, train: 24), epochs 2, 5, 15>
    """

    form: ClassVar[Form] = "tiles"
    memory_limit: int | str | None = None
    scratch: str | None = None

    def factor(self, kernel: Kernel, damping: float | Damping = 1.0) -> BlockedFactor:
        give_back()
        gram = need(kernel, TiledGram, self)
        damped = damping_of(gram, damping)
        source = gram.array
        width = _width(gram.dim, source.chunks[0], memory_budget(self.memory_limit))
        scratch = Scratch(self.scratch)
        lower = _scratch_array(scratch, gram.dim, source.chunks[0])
        diagonal = np.concatenate(
            [_panel(gram, source, lower, piece, damped) for piece in ranges(gram.dim, width)]
        )
        # cond(K + λI) = cond(L)², and cond(L) is at least the ratio of any two diagonal entries.
        condition = float(diagonal.max() / diagonal.min()) ** 2
        check_condition(gram, damped, condition, gram.dtype)
        return BlockedFactor(gram.dim, damped, condition, lower, scratch, width)


@dataclass(frozen=True, eq=False)
class BlockedFactor(Factor):
    """L in tiles; ``condition`` is the lower bound (max L_ii / min L_ii)²."""

    lower: zarr.Array[Any]
    scratch: Scratch
    width: int
    solve_rows: ClassVar[int] = 1024

    def solve(self, rhs: NDArray[np.floating]) -> F64:
        values = np.array(rhs, dtype=np.float64)
        panels = list(ranges(self.dim, self.width))
        # Right-hand sides are rows, so that L stands on the right in both systems: Y Lᵀ = X going
        # forwards, then Z L = Y going backwards.
        for at, piece in enumerate(panels):
            for other in panels[:at]:
                values[:, slice(*piece)] -= values[:, slice(*other)] @ self._tile(piece, other).T
            self._divide(values, piece, transposed=False)
        for at in reversed(range(len(panels))):
            piece = panels[at]
            for other in panels[at + 1 :]:
                values[:, slice(*piece)] -= values[:, slice(*other)] @ self._tile(other, piece)
            self._divide(values, piece, transposed=True)
        return values

    def _divide(self, values: F64, piece: tuple[int, int], *, transposed: bool) -> None:
        """Solve for one panel, in place, with the tile on its diagonal."""
        corner = self._tile(piece, piece)
        part = values[:, slice(*piece)]
        part[...] = solve_triangular(
            corner, part.T, lower=True, trans=int(transposed), check_finite=False
        ).T

    def _tile(self, rows: tuple[int, int], columns: tuple[int, int]) -> F64:
        return np.asarray(self.lower[slice(*rows), slice(*columns)])


def _width(dim: int, tile: int, limit: int) -> int:
    """Return the columns of a panel: whole tiles, at most an eighth of the matrix."""
    most = max(tile, -(-dim // 8 // tile) * tile)
    for width in range(most, 0, -tile):
        if _bytes(dim, width) <= limit:
            return width
    raise MemoryLimitError(
        f"a blocked factorisation of {dim} columns needs at least "
        f"{human_bytes(_bytes(dim, tile))}, the memory limit is {human_bytes(limit)}: "
        f"{LARGER_LIMIT}"
    )


def _bytes(dim: int, width: int) -> int:
    """Return the bytes of a panel, of the two tiles that it is multiplied with, and one being read."""
    return with_slack(8 * width * (dim + 4 * width))


def _scratch_array(scratch: Scratch, dim: int, tile: int) -> zarr.Array[Any]:
    return zarr.create_array(
        zarr.storage.LocalStore(scratch.location.address),
        name="lower",
        shape=(dim, dim),
        chunks=(tile, tile),
        dtype="f8",
        compressors=None,
        filters=None,
    )


def _panel(
    gram: TiledGram,
    source: TableArray,
    lower: zarr.Array[Any],
    piece: tuple[int, int],
    damped: float,
) -> F64:
    """Factor the panel of columns start..stop and store it; return the diagonal of L there."""
    # Left-looking: the panel from the diagonal down is P = K − Σ L_j L_jᵀ over the panels j before it.
    # The square at its top is then C = L Lᵀ, and the rest is divided by Lᵀ.
    start, stop = piece
    width = stop - start
    panel = np.empty((gram.dim - start, width))
    pieces = [(low + start, high + start) for low, high in ranges(gram.dim - start, width)]
    for low, high in pieces:
        panel[low - start : high - start] = source[low:high, start:stop]
    panel[:width].flat[:: width + 1] += damped
    for first, last in ranges(start, width):
        corner = np.asarray(lower[start:stop, first:last])
        for low, high in pieces:
            left = corner if low == start else np.asarray(lower[low:high, first:last])
            _subtract(panel[low - start : high - start], left, corner)
    try:
        corner = cholesky(panel[:width], lower=True, check_finite=False)
    except LinAlgError:
        raise singular(gram, damped) from None
    panel[:width] = corner
    for low, high in pieces[1:]:
        _divide(panel[low - start : high - start], corner)
    for low, high in pieces:
        lower[low:high, start:stop] = panel[low - start : high - start]
    return np.diagonal(corner).copy()


def _subtract(panel: F64, left: F64, right: F64) -> None:
    """Compute panel -= left rightᵀ in place."""
    # BLAS writes to Fortran order, in which transposed views are: panelᵀ -= right leftᵀ.
    dgemm(-1.0, right.T, left.T, beta=1.0, c=panel.T, trans_a=True, overwrite_c=True)


def _divide(panel: F64, corner: F64) -> None:
    """Compute panel := panel L⁻ᵀ in place."""
    dtrsm(1.0, corner.T, panel.T, lower=False, trans_a=True, overwrite_b=True)

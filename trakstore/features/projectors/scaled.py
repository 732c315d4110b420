"""Gradients that are scaled before they are projected, each parameter's by two vectors.

With factors a of the rows and b of the columns, the gradient g[r, c] of a parameter seen as (first
dimension, rest) becomes a[r]·g[r, c]·b[c]. A product of factors stays one, since a belongs to the left
and b to the right one, so that nothing is formed that would not have been.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from trakstore.features.projectors.pieces import Gathered, Outer, Piece, Rows
from trakstore.features.projectors.projector import Projector, Sides, remembered

__all__ = ["Scaled", "scaled"]


def scaled(projector: Projector, factors: Mapping[str, Sides]) -> Projector:
    """Return the projector of scaled gradients: one that holds the factors itself, where it can."""
    return projector.of_scaled(factors) or Scaled(projector, factors)


class Scaled(Projector):
    """A projector of scaled gradients.

    Parameters
    ----------
    projector : Projector
        Projector of what is scaled.
    factors : mapping of name to (rows, columns)
        Factors of each parameter, float32, of shapes (rows,) and (columns,).
    """

    def __init__(self, projector: Projector, factors: Mapping[str, Sides]) -> None:
        self.spec, self.shapes = projector.spec, projector.shapes
        self.matrices, self.first_columns = projector.matrices, projector.first_columns
        self._projector, self._factors = projector, factors

    @property
    def dim(self) -> int:
        """Number of features."""
        return self._projector.dim

    def add(self, out: Tensor, name: str, tile: Tensor, first_row: int = 0) -> None:
        """Add the projection of a scaled tile; see :meth:`Projector.add`."""
        rows, columns = self._sides(name, tile.device)
        own = rows[first_row : first_row + tile.shape[1]]
        self._projector.add(out, name, tile.to(torch.float32) * own[:, None] * columns, first_row)

    def add_piece(self, out: Tensor, piece: Piece) -> None:
        """Add the projection of a scaled part of a parameter's gradients."""
        if isinstance(piece, Rows):
            self.add(out, piece.name, piece.tile, piece.first_row)
            return
        sides = self._sides(piece.name, out.device)
        scaled = _outer(piece, *sides) if isinstance(piece, Outer) else _gathered(piece, *sides)
        self._projector.add_piece(out, scaled)

    @remembered
    def _sides(self, name: str, device: torch.device) -> Sides:
        rows, columns = self._factors[name]
        return rows.to(device), columns.to(device)


def _outer(outer: Outer, rows: Tensor, columns: Tensor) -> Outer:
    """Scale the left factor by rows, and the right one by columns."""
    own = rows[outer.first_row : outer.first_row + outer.rows]
    left = _times(outer.left, own)
    right = partial(_right, outer.make_right, columns)
    filtered = outer.filtered and partial(_filtered, outer.filtered, columns)
    return outer._replace(left=left, make_right=right, filtered=filtered, unfolded=None)


def _right(make: Callable[[int, int], Tensor], columns: Tensor, start: int, stop: int) -> Tensor:
    return _times(make(start, stop), columns)


def _times(factor: Tensor, scale: Tensor) -> Tensor:
    """Scale the last dimension, in float32 but where a GPU multiplies bfloat16."""
    low = factor.is_cuda and factor.dtype == torch.bfloat16
    return factor * (scale.to(torch.bfloat16) if low else scale)


def _filtered(
    filtered: Callable[[int, int, Tensor], Tensor],
    columns: Tensor,
    start: int,
    stop: int,
    matrix: Tensor,
) -> Tensor:
    return filtered(start, stop, columns[:, None] * matrix)


def _gathered(gathered: Gathered, rows: Tensor, columns: Tensor) -> Gathered:
    values = gathered.values.to(torch.float32) * columns * rows[gathered.index][:, :, None]
    return Gathered(gathered.name, gathered.index, values)

"""Sums of gradients along rows and columns with random signs: second moments without their squares.

For random signs s, the mean of (Σ_c s[c]·g[r, c])² is Σ_c g[r, c]². So the squares of linear sums give
the row and column means of squared gradients, by the same engines as features, without forming a
gradient. Each draw, numbered by the caller, has new signs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trakstore.features.projectors.hashing import hash1, keys
from trakstore.features.projectors.pieces import Gathered, Outer
from trakstore.features.projectors.projector import Projector
from trakstore.planning import ranges
from trakstore.spec import ParameterSpec, ProjectionSpec

__all__ = ["SignSums"]

_SIGNS = ProjectionSpec("sjlt", dim=1)  # by which signs are drawn; never projected with


class SignSums(Projector):
    """Sums of each parameter along its rows, then along its columns, a number for each.

    Attributes
    ----------
    draw : int
        Number of the signs, from 0; may be set between batches.
    """

    def __init__(self, parameters: ParameterSpec) -> None:
        super().__init__(_SIGNS, parameters)
        self.draw, self._first, end = 0, {}, 0
        for name, (rows, columns) in self.matrices.items():
            self._first[name], end = end, end + rows + columns
        self._dim = end

    @property
    def dim(self) -> int:
        """Number of sums."""
        return self._dim

    def moments(self, name: str, squares: Tensor) -> tuple[Tensor, Tensor]:
        """Take the row and column means of squared gradients from the mean squares of all sums."""
        (rows, columns), first = self.matrices[name], self._first[name]
        own = squares[first : first + rows + columns]
        return own[:rows] / columns, own[rows:] / rows

    def add(self, out: Tensor, name: str, tile: Tensor, first_row: int = 0) -> None:
        """Add the sums of a tile; see :meth:`Projector.add`."""
        along_rows, along_columns = self._parts(out, name, first_row, tile.shape[1])
        by_row, by_column = self._signs(name, first_row, tile)
        tile = tile.to(torch.float32)
        along_rows += tile @ by_column
        along_columns += (tile.transpose(1, 2) @ by_row[:, None])[:, :, 0]

    def add_outer(self, out: Tensor, outer: Outer) -> None:
        """Add the sums of a product of factors, each multiplied with the signs of the other."""
        along_rows, along_columns = self._parts(out, outer.name, outer.first_row, outer.rows)
        by_row, by_column = self._signs(outer.name, outer.first_row, outer.left, outer.rows)
        left = outer.left.to(torch.float32)
        # A sample at a time where positions are many: a convolution unfolds its input here.
        for start, stop in ranges(
            outer.batch, max(1, (1 << 24) // (outer.positions * outer.columns))
        ):
            right = outer.make_right(start, stop).to(torch.float32)
            own = left[start:stop]
            along_rows[start:stop] += (own.transpose(1, 2) @ (right @ by_column)[:, :, None])[
                :, :, 0
            ]
            along_columns[start:stop] += (right.transpose(1, 2) @ (own @ by_row)[:, :, None])[
                :, :, 0
            ]

    def add_gathered(self, out: Tensor, gathered: Gathered) -> None:
        """Add the sums of rows that an index picks."""
        rows = self.matrices[gathered.name][0]
        along_rows, along_columns = self._parts(out, gathered.name, 0, rows)
        by_row, by_column = self._signs(gathered.name, 0, gathered.values, rows)
        values = gathered.values.to(torch.float32)
        along_rows.scatter_add_(1, gathered.index, values @ by_column)
        along_columns += torch.einsum("bnc,bn->bc", values, by_row[gathered.index])

    def _parts(self, out: Tensor, name: str, first_row: int, rows: int) -> tuple[Tensor, Tensor]:
        first, (all_rows, columns) = self._first[name], self.matrices[name]
        own, behind = first + first_row, first + all_rows
        return out[:, own : own + rows], out[:, behind : behind + columns]

    def _signs(
        self, name: str, first_row: int, like: Tensor, rows: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the signs of some rows, and of all columns, float32."""
        count = like.shape[1] if rows is None else rows
        columns = self.matrices[name][1]
        ends = (first_row, first_row + count), (0, columns)
        made = (
            self._drawn(name, which, torch.arange(*one, device=like.device))
            for which, one in zip(("rows", "columns"), ends, strict=True)
        )
        by_row, by_column = made
        return by_row, by_column

    def _drawn(self, name: str, which: str, positions: Tensor) -> Tensor:
        key = keys(_SIGNS, name, self.shapes[name], f"{which} {self.draw}")
        return (1 - 2 * (hash1(positions, key) & 1)).to(torch.float32)

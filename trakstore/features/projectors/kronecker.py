"""Two-sided projections: each weight's gradient G becomes L·G·Rᵀ, which is then sketched.

L is ``(side, rows)`` and R ``(side, rest)``, of signs ±1/√side from the counter hash; a side that is no
longer than ``side``, and both sides of biases and scales, stay as they are. The small matrices are
sketched to ``dim`` by ``sjlt``. Since G is a sum of products of activations and output gradients, both
factors are projected and G is never formed: fast, but the error is of ``side``, not of ``dim``: two
times that of ``sjlt`` and more. Source: Choe et al. (2024), LoGra, without its learned factors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from trakstore.features.projectors.collecting import Changed, Collecting
from trakstore.features.projectors.hashing import hash2, keys
from trakstore.features.projectors.pieces import Gathered, Outer, Piece, Rows
from trakstore.features.projectors.products import Side, times
from trakstore.features.projectors.projector import Projector, Sides, as_matrix, remembered
from trakstore.features.projectors.sjlt import SJLT
from trakstore.spec import ParameterSpec, ProjectionSpec

__all__ = ["Kronecker"]


class Kronecker(Projector):
    """Both factors projected, their product sketched.

    Parameters
    ----------
    spec, parameters
        As of :class:`Projector`.
    factors : mapping of name to (rows, columns), optional
        Factors of the rows and columns of gradients, which L and R are multiplied with.
    """

    def __init__(
        self,
        spec: ProjectionSpec,
        parameters: ParameterSpec,
        factors: Mapping[str, Sides] | None = None,
    ) -> None:
        super().__init__(spec, parameters)
        self._side, self._factors = spec.side or 1, factors
        small = tuple((name, self._small(shape)) for name, shape in self.matrices.items())
        self._sketch = SJLT(spec, ParameterSpec(small))

    def of_scaled(self, factors: Mapping[str, Sides]) -> Kronecker:
        """See :meth:`Projector.of_scaled`."""
        return Kronecker(self.spec, ParameterSpec(tuple(self.shapes.items())), factors)

    def of_columns(self, columns: Mapping[str, tuple[int, int]]) -> Kronecker:
        """See :meth:`Projector.of_columns`: of these alone, where R is not the identity."""
        made = Kronecker(self.spec, ParameterSpec(tuple(self.shapes.items())), self._factors)
        for name, (start, stop) in columns.items():
            rows, rest = shape = self.matrices[name]
            if self._small(shape)[1] < rest:
                made.first_columns[name], made.matrices[name] = start, (rows, stop - start)
        return made

    def collecting(self) -> Collecting:
        """See :meth:`Projector.collecting`: small matrices wait for one another, as a sketch's do."""
        return Changed(self._reduced, self._sketch.collecting())

    def add(self, out: Tensor, name: str, tile: Tensor, first_row: int = 0) -> None:
        """Add the projection of a tile; see :meth:`Projector.add`."""
        self.add_piece(out, Rows(name, tile, first_row))

    def add_piece(self, out: Tensor, piece: Piece) -> None:
        """Add the projection of a piece, made small before."""
        self._sketch.add_piece(out, self._reduced(piece))

    def add_outer(self, out: Tensor, outer: Outer) -> None:
        """Add a product of two factors, each projected before."""
        self.add_piece(out, outer)

    def add_gathered(self, out: Tensor, gathered: Gathered) -> None:
        """Add rows that an index picks, projected on both sides."""
        self.add_piece(out, gathered)

    def _reduced(self, piece: Piece) -> Rows | Gathered:
        """Return L·G·Rᵀ, as a piece of the small matrix."""
        if isinstance(piece, Rows):
            return self._of_rows(piece)
        return self._of_outer(piece) if isinstance(piece, Outer) else self._of_gathered(piece)

    def _of_rows(self, rows: Rows) -> Rows:
        left, right = self._sides_of(rows.name, rows.tile.device)
        small, first_row = rows.tile.to(torch.float32), rows.first_row
        own = slice(first_row, first_row + small.shape[1])
        if right is not None:
            small = small @ right.whole if isinstance(right, Side) else small * right
        if isinstance(left, Side):
            return Rows(rows.name, left.whole[own].T @ small)
        return Rows(rows.name, small if left is None else small * left[own, None], first_row)

    def _of_outer(self, outer: Outer) -> Rows:
        # G = leftᵀ·right, summed over positions, so that L·G·Rᵀ = (left·Lᵀ)ᵀ·(right·Rᵀ).
        left, right = self._sides_of(outer.name, outer.left.device)
        first_row, units = outer.first_row, [1.0, 1.0]
        own = slice(first_row, first_row + outer.rows)
        if isinstance(left, Side):
            # These are some rows of the weight, and all rows of what L makes of them.
            mine, units[0] = times(outer.left, left, own)
            first_row = 0
        else:
            mine = outer.left.to(torch.float32)
            mine = mine if left is None else mine * left[own]
        if isinstance(right, Side):
            other, units[1] = outer.right_times(0, outer.batch, right)
        else:
            other = outer.make_right(0, outer.batch).to(torch.float32)
            other = other if right is None else other * right
        small = _multiplied(mine.transpose(1, 2), other, units[0] * units[1])
        return Rows(outer.name, small, first_row)

    def _of_gathered(self, gathered: Gathered) -> Rows | Gathered:
        name, values = gathered.name, gathered.values.to(torch.float32)
        left, right = self._sides_of(name, values.device)
        if right is not None:
            values = values @ right.whole if isinstance(right, Side) else values * right
        if isinstance(left, Side):
            return Rows(name, left.whole[gathered.index].transpose(1, 2) @ values)
        if left is not None:
            values = values * left[gathered.index][:, :, None]
        return Gathered(name, gathered.index, values)

    @remembered
    def _sides_of(
        self, name: str, device: torch.device
    ) -> tuple[Side | Tensor | None, Side | Tensor | None]:
        """Return Lᵀ and Rᵀ of a parameter, each ``(size, side)``.

        A diagonal matrix is given as its diagonal ``(size,)``; None is the identity.
        """
        shape, factors = as_matrix(self.shapes[name]), None
        if self._factors is not None:
            factors = [one.to(device) for one in self._factors[name]]
        sides: list[Side | Tensor | None] = []
        for i, small in enumerate(self._small(shape)):
            if small == shape[i]:
                sides.append(None if factors is None else factors[i])
                continue
            signs = self._signs(name, ("left", "right")[i], shape[i]).to(device)
            signs = signs if factors is None else signs * factors[i][:, None]
            if i == 1:
                signs = signs.narrow(0, self.first_columns.get(name, 0), self.matrices[name][1])
            sides.append(Side.of(signs))
        return sides[0], sides[1]

    def _signs(self, name: str, which: str, size: int) -> Tensor:
        i, j = torch.arange(self._side)[:, None], torch.arange(size)[None]
        word = hash2(i, j, keys(self.spec, name, self.shapes[name], f"{which} {self._side}"))
        signs = (1 - 2 * (word.T.contiguous() & 1)).to(torch.float32)
        return signs / math.sqrt(self._side)

    def _small(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Shape of the projected matrix; biases and scales are left as they are."""
        return shape if 1 in shape else (min(shape[0], self._side), min(shape[1], self._side))


def _multiplied(left: Tensor, right: Tensor, unit: float) -> Tensor:
    """Multiply ``(b, m, k)`` and ``(b, k, n)`` and a unit."""
    if left.shape[2] == 1:  # a column times a row, which sums nothing
        product = left * right
        return product if unit == 1 else product.mul_(unit)
    if unit == 1:
        return left @ right
    empty = left.new_empty(1, 1, 1)  # that counts for nothing
    return torch.baddbmm(empty, left, right, beta=0, alpha=unit)

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

from trakstore.features.projectors.collecting import Collecting
from trakstore.features.projectors.hashing import hash2, keys
from trakstore.features.projectors.pieces import Gathered, Outer, Piece, Rows
from trakstore.features.projectors.products import Side, times
from trakstore.features.projectors.projector import Projector, Sides, as_matrix, remembered
from trakstore.features.projectors.recent import Recent
from trakstore.features.projectors.shared_rights import SharedRights
from trakstore.features.projectors.sjlt import SJLT
from trakstore.features.projectors.thin_factors import ThinFactors
from trakstore.features.projectors.waiting_products import WaitingProducts
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
        # In a model whose layers depend on the data, other layers come together in each batch.
        self._beside = Recent[tuple[tuple[str, ...], torch.device], Side](2 * len(self.shapes))

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
        """See :meth:`Projector.collecting`: on a GPU many products are formed by one kernel."""
        return WaitingProducts(self, self._sketch.collecting())

    def add(self, out: Tensor, name: str, tile: Tensor, first_row: int = 0) -> None:
        """Add the projection of a tile; see :meth:`Projector.add`."""
        self.add_piece(out, Rows(name, tile, first_row))

    def add_piece(self, out: Tensor, piece: Piece) -> None:
        """Add the projection of a piece after making it small."""
        self._sketch.add_piece(out, self.small(piece))

    def add_outer(self, out: Tensor, outer: Outer) -> None:
        """Add a product of two factors, each of which is projected first."""
        self.add_piece(out, outer)

    def add_gathered(self, out: Tensor, gathered: Gathered) -> None:
        """Add rows that an index picks, projected on both sides."""
        self.add_piece(out, gathered)

    def small(self, piece: Piece) -> Rows | Gathered:
        """Return L·G·Rᵀ, as a piece of the small matrix."""
        if isinstance(piece, Rows):
            return self._of_rows(piece)
        return self._of_outer(piece) if isinstance(piece, Outer) else self._of_gathered(piece)

    def thin(self, outer: Outer, rights: SharedRights) -> ThinFactors | None:
        """Return the factors of L·G·Rᵀ; None where one of them is not projected."""
        sides = self._sides_of(outer.name, outer.left.device)
        both = all(isinstance(one, Side) for one in sides)
        return self._factors_of(outer, rights) if both else None

    def right_sides(self, outer: Outer) -> tuple[tuple[str, ...], Side]:
        """Return the parameters that have a right factor, and the Rᵀ of all of them side by side."""
        names = tuple(name for name in outer.beside if self._may_share(name, outer))
        names = names if outer.name in names else (outer.name,)
        key = names, outer.left.device
        return names, self._beside.of(key, lambda: self._side_by_side(*key))

    def _may_share(self, name: str, outer: Outer) -> bool:
        side = self._sides_of(name, outer.left.device)[1]
        once = outer.beside.count(name) == 1
        return once and isinstance(side, Side) and len(side.whole) == outer.columns

    def _side_by_side(self, names: tuple[str, ...], device: torch.device) -> Side:
        sides = [self._sides_of(name, device)[1] for name in names]
        each = [side for side in sides if isinstance(side, Side)]
        if len(each) == 1:
            return each[0]
        return Side(torch.cat([side.whole for side in each], 1), each[0].unit, {})

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
        left, _ = self._sides_of(outer.name, outer.left.device)
        # L makes all rows of what were some rows of the weight.
        first_row = 0 if isinstance(left, Side) else outer.first_row
        return Rows(outer.name, self._factors_of(outer).multiplied(), first_row)

    def _factors_of(self, outer: Outer, rights: SharedRights | None = None) -> ThinFactors:
        # G = leftᵀ·right, summed over positions, so that L·G·Rᵀ = (left·Lᵀ)ᵀ·(right·Rᵀ).
        left, right = self._sides_of(outer.name, outer.left.device)
        own, units = slice(outer.first_row, outer.first_row + outer.rows), [1.0, 1.0]
        if isinstance(left, Side):
            mine, units[0] = times(outer.left, left, own)
        else:
            mine = outer.left.to(torch.float32)
            mine = mine if left is None else mine * left[own]
        if isinstance(right, Side):
            whole = 0, outer.batch, right
            other, units[1] = rights.times(outer) if rights else outer.right_times(*whole)
        else:
            other = outer.make_right(0, outer.batch).to(torch.float32)
            other = other if right is None else other * right
        return ThinFactors(mine, other, units[0] * units[1])

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

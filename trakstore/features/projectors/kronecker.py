"""Two-sided projections: each weight's gradient G becomes L·G·Rᵀ, which is then sketched.

L is ``(side, rows)`` and R ``(side, rest)``, of signs ±1/√side from the counter hash; a side that is no
longer than ``side``, and both sides of biases and scales, stay as they are. The small matrices are
sketched to ``dim`` by ``sjlt``. Since G is a sum of products of activations and output gradients, both
factors are projected and G is never formed: fast, but the error is of ``side``, not of ``dim``: two
times that of ``sjlt`` and more. Source: Choe et al. (2024), LoGra, without its learned factors.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trakstore.features.projectors.base import Projector, as_matrix
from trakstore.features.projectors.hashing import hash2, keys
from trakstore.features.projectors.pieces import Gathered, Outer
from trakstore.features.projectors.sjlt import SJLT
from trakstore.spec import ParameterSpec, ProjectionSpec

__all__ = ["Kronecker"]


class Kronecker(Projector):
    """Both factors projected, their product sketched."""

    def __init__(self, spec: ProjectionSpec, parameters: ParameterSpec) -> None:
        super().__init__(spec, parameters)
        small = tuple((name, self._small(as_matrix(shape))) for name, shape in parameters.shapes)
        self._sketch = SJLT(spec, ParameterSpec(small))
        self._matrices: dict[tuple[str, str, torch.device], Tensor] = {}

    def add(self, out: Tensor, name: str, tile: Tensor, first_row: int = 0) -> None:
        """Add the projection of a tile; see :meth:`Projector.add`."""
        tile = tile.to(torch.float32)
        right = self.side(name, "right", tile.device)
        small = tile if right is None else tile @ right.T
        left = self.side(name, "left", tile.device)
        if left is None:
            self._sketch.add(out, name, small, first_row)
        else:
            self._sketch.add(out, name, left[:, first_row : first_row + tile.shape[1]] @ small)

    def add_outer(self, out: Tensor, outer: Outer) -> None:
        """Add a product of two factors, each projected before."""
        name, batch, device = outer.name, outer.batch, out.device
        left, right = self.side(name, "left", device), self.side(name, "right", device)
        own = outer.left.to(torch.float32)
        first_row = outer.first_row
        if left is not None:
            own = own @ left[:, first_row : first_row + outer.rows].T
            first_row = 0
        if right is None:
            other = outer.make_right(0, batch).to(torch.float32)
        else:
            other = outer.right_times(0, batch, right)
        self._sketch.add(out, name, own.transpose(1, 2) @ other, first_row)

    def add_gathered(self, out: Tensor, gathered: Gathered) -> None:
        """Add rows that an index picks, projected on both sides."""
        name, values = gathered.name, gathered.values.to(torch.float32)
        left, right = (self.side(name, one, out.device) for one in ("left", "right"))
        if right is not None:
            values = values @ right.T
        if left is None:
            self._sketch.add_gathered(out, Gathered(name, gathered.index, values))
        else:
            self._sketch.add(out, name, left.T[gathered.index].transpose(1, 2) @ values)

    def side(self, name: str, which: str, device: torch.device) -> Tensor | None:
        """L or R of a parameter, ``(side, size)``; None where it is the identity."""
        rows, rest = as_matrix(self.shapes[name])
        size = rows if which == "left" else rest
        if self._small((rows, rest))[which == "right"] == size:
            return None
        if (name, which, device) not in self._matrices:
            i, j = torch.arange(self._side)[:, None], torch.arange(size)[None]
            word = hash2(i, j, keys(self.spec, name, self.shapes[name], f"{which} {self._side}"))
            signs = (1 - 2 * (word & 1)).to(device, torch.float32)
            self._matrices[name, which, device] = signs / math.sqrt(self._side)
        return self._matrices[name, which, device]

    @property
    def _side(self) -> int:
        return self.spec.side or 1

    def _small(self, shape: tuple[int, int]) -> tuple[int, int]:
        return shape if 1 in shape else (min(shape[0], self._side), min(shape[1], self._side))

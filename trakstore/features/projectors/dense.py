"""Dense random projections: strips of P are drawn from a counter, used for all samples, and dropped.

Drawing a strip costs as much as multiplying it with about five samples, so batches of 32 and more come
near to the speed of a matrix product.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from trakstore.features.projectors.base import Projector
from trakstore.features.projectors.pieces import Outer
from trakstore.features.projectors.threads import shared
from trakstore.planning import ranges

__all__ = ["Dense"]

_STRIP = 1 << 18  # entries of P that a thread holds at once
_TILE = 1 << 20  # entries of gradients that a thread forms at once
_MULTIPLY = 0.02  # nanoseconds a multiplication


class Dense(Projector):
    """φ = Σ_entries g[entry]·P[entry], where P is never held."""

    @abstractmethod
    def strip(self, name: str, start: int, stop: int, device: torch.device) -> Tensor:
        """Rows ``start`` to ``stop`` of Pᵀ, ``(stop - start, dim)`` float32, of the flat parameter."""

    def add(self, out: Tensor, name: str, tile: Tensor, first_row: int = 0) -> None:
        """Add the projection of a tile; see :meth:`Projector.add`."""
        batch, rows, rest = tile.shape
        flat = tile.reshape(batch, rows * rest).to(torch.float32)
        step = max(1, _STRIP // self.dim)
        strips = list(ranges(rows * rest, step))
        parts: dict[int, Tensor] = {}

        def work(start: int, stop: int) -> None:
            parts[start] = self._sum(name, flat, first_row * rest, strips[start:stop])

        shared(len(strips), batch * rows * rest * self.dim * _MULTIPLY, work)
        for start in sorted(parts):
            out += parts[start]

    def add_outer(self, out: Tensor, outer: Outer) -> None:
        """Add a product of factors: each thread forms and projects tiles of some rows."""
        left, right = outer.factors(0, outer.batch)
        tiles = list(ranges(outer.rows, max(1, _TILE // (outer.batch * outer.columns))))
        parts: dict[int, Tensor] = {}

        def work(start: int, stop: int) -> None:
            total = torch.zeros_like(out)
            for lo, hi in tiles[start:stop]:
                tile = left[:, :, lo:hi].transpose(1, 2) @ right
                first = (outer.first_row + lo) * outer.columns
                strips = list(ranges(tile[0].numel(), max(1, _STRIP // self.dim)))
                total += self._sum(outer.name, tile.reshape(len(tile), -1), first, strips)
            parts[start] = total

        entries = outer.batch * outer.rows * outer.columns
        shared(len(tiles), entries * (self.dim + outer.positions) * _MULTIPLY, work)
        for start in sorted(parts):
            out += parts[start]

    def _sum(self, name: str, flat: Tensor, first: int, strips: list[tuple[int, int]]) -> Tensor:
        total = torch.zeros(len(flat), self.dim, device=flat.device)
        for start, stop in strips:
            strip = self.strip(name, first + start, first + stop, flat.device)
            total.addmm_(flat[:, start:stop], strip)
        return total

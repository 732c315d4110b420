"""Dense random signs: P = ±1/√dim, the projection of the TRAK paper.

The sign of (row r, position c, column j) is bit j mod 32 of a hash of (r, c, j div 32), so a strip of P
is drawn, used and dropped. Source: Achlioptas (2003).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trakstore.features.projectors.base import Projector
from trakstore.features.projectors.hashing import hash3, keys

__all__ = ["Rademacher"]

_STRIP = 1 << 22  # signs that are held at once


class Rademacher(Projector):
    """Dense random signs, drawn in strips."""

    def add(self, out: Tensor, name: str, tile: Tensor, first_row: int = 0) -> None:
        """Add the projection of a tile; see :meth:`Projector.add`."""
        batch, rows, rest = tile.shape
        flat = tile.reshape(batch, rows * rest).to(torch.float32)
        step = max(1, _STRIP // self.dim)
        for start in range(0, rows * rest, step):
            part = flat[:, start : start + step]
            index = torch.arange(start, start + part.shape[1], device=out.device)
            signs = self.signs(name, first_row + index // rest, index % rest)
            out.addmm_(part, signs, alpha=1 / math.sqrt(self.dim))

    def signs(self, name: str, row: Tensor, position: Tensor) -> Tensor:
        """Rows of P·√dim for the given entries, shape ``(entries, dim)``, float32."""
        key = keys(self.spec, name, self.shapes[name], "signs")
        word = torch.arange(-(-self.dim // 32), device=row.device)
        words = hash3(row[:, None], position[:, None], word[None], key)
        bits = (words[:, :, None] >> torch.arange(32, device=row.device)) & 1
        return (1 - 2 * bits).reshape(len(row), -1)[:, : self.dim].to(torch.float32)

"""Dense random signs: P = ±1/√dim, the projection of the TRAK paper.

The sign of (row r, position c, column j) is bit j mod 32 of a hash of (r, c, j div 32). Source:
Achlioptas (2003).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from trakstore.features.projectors import loops
from trakstore.features.projectors.base import as_matrix
from trakstore.features.projectors.dense import Dense
from trakstore.features.projectors.hashing import hash3, keys, mix

__all__ = ["Rademacher"]


class Rademacher(Dense):
    """Dense random signs, drawn in strips."""

    def strip(self, name: str, start: int, stop: int, device: torch.device) -> Tensor:
        """Rows of Pᵀ; see :meth:`Dense.strip`."""
        _, rest = as_matrix(self.shapes[name])
        key = keys(self.spec, name, self.shapes[name], "signs")
        words = -(-self.dim // 32)
        if device.type != "cpu":
            index = torch.arange(start, stop, device=device)
            return self._signs(key, index // rest, index % rest, words) / math.sqrt(self.dim)
        strip = np.empty((stop - start, words * 32), np.float32)
        columns = mix(torch.arange(words) ^ key[2]).numpy().astype(np.uint32)
        bits = (np.arange(256)[:, None] >> np.arange(8)) & 1
        table = ((1 - 2 * bits) / math.sqrt(self.dim)).astype(np.float32)
        loops.draw_signs(strip, start, rest, key[0], key[1], columns, table)
        return torch.from_numpy(strip)[:, : self.dim]

    def _signs(self, key: tuple[int, ...], row: Tensor, position: Tensor, words: int) -> Tensor:
        word = torch.arange(words, device=row.device)
        drawn = hash3(row[:, None], position[:, None], word[None], key)
        bits = (drawn[:, :, None] >> torch.arange(32, device=row.device)) & 1
        return (1 - 2 * bits).reshape(len(row), -1)[:, : self.dim].to(torch.float32)

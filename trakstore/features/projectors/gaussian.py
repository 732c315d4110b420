"""Dense normal numbers, of variance 1/dim: the yardstick for all other projections.

Columns 2j and 2j + 1 of (row r, position c) are Box and Muller's pair √(-2 ln u)·(cos, sin)(2πv) of
u, v = (word + 1/2) / 2³², with the words hash(r, c, 2j) and hash(r, c, 2j + 1).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trakstore.features.projectors.dense import Dense
from trakstore.features.projectors.hashing import hash3, keys

__all__ = ["Gaussian"]


class Gaussian(Dense):
    """Dense normal numbers, drawn in strips."""

    def strip(
        self, name: str, entries: tuple[int, int], columns: tuple[int, int], device: torch.device
    ) -> Tensor:
        """Return a part of Pᵀ; see :meth:`Dense.strip`."""
        _, rest = self.matrices[name]
        key = keys(self.spec, name, self.shapes[name], "normal")
        index = torch.arange(*entries, device=device)[:, None]
        pairs = torch.arange(columns[0] // 2, -(-columns[1] // 2), device=device)[None]
        u, v = (
            (hash3(index // rest, index % rest, 2 * pairs + i, key).double() + 0.5) / 2**32
            for i in (0, 1)
        )
        # The words become float64, which holds all 32 bits: in float32 the argument of the logarithm
        # would be rounded, sometimes to 1. The results are exact to float32.
        radius, angle = (-2 * u.log()).sqrt().float(), (2 * math.pi * v).float()
        both = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=2)
        return both.flatten(1)[:, : columns[1] - columns[0]] / math.sqrt(self.dim)

"""The sparse Johnson-Lindenstrauss transform, version 1.

A parameter is seen as (row r, position c in the rest). With k = dim and one hash a row and run of k
positions,

    column = (h1(r, c div k) + c) mod k,    sign = s1(r, c div k)·s2(c),

so that a row is added as contiguous runs at hashed offsets. With s > 1 there are s independent copies,
each times 1/√s. Pairs of entries collide with probability 1/k and their signs are independent, hence
E[PᵀP] = I. Source: Charikar, Chen and Farach-Colton (2002) for the sketch, Kane and Nelson (2014) for
s copies, Pham and Pagh (2013) for the bound on the variance of products of such hashes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trakstore.features.projectors.base import Projector
from trakstore.features.projectors.hashing import hash1, hash2, keys

__all__ = ["SJLT"]

_TILE = 1 << 20  # entries whose columns and signs are drawn at once


class SJLT(Projector):
    """Sparse random signs: s non-zeros for each entry of the gradient."""

    def add(self, out: Tensor, name: str, tile: Tensor, first_row: int = 0) -> None:
        """Add the sketch of a tile; see :meth:`Projector.add`."""
        _, rows, rest = tile.shape
        step = max(1, _TILE // rest)
        for start in range(0, rows, step):
            part = tile[:, start : start + step].to(torch.float32)
            for copy in range(self.spec.s):
                columns, signs = self.entries(
                    name, copy, first_row + start, part.shape[1], rest, out.device
                )
                signed = (part * signs).reshape(len(part), -1)
                out.scatter_add_(1, columns.reshape(1, -1).expand(len(part), -1), signed)

    def entries(
        self, name: str, copy: int, first_row: int, rows: int, rest: int, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Columns (int64) and signed values (float32), each of shape ``(rows, rest)``."""
        k, shape = self.dim, self.shapes[name]
        r = torch.arange(first_row, first_row + rows, device=device)[:, None]
        run = torch.arange(-(-rest // k), device=device)[None]
        c = torch.arange(rest, device=device)
        word = hash2(r, run, keys(self.spec, name, shape, f"runs {copy}"))
        offset = ((word >> 1) * k >> 31)[:, c // k]
        sign1 = (1 - 2 * (word & 1))[:, c // k]
        sign2 = 1 - 2 * (hash1(c, keys(self.spec, name, shape, f"signs {copy}")) & 1)
        value = (sign1 * sign2).to(torch.float32) / math.sqrt(self.spec.s)
        return (offset + c) % k, value

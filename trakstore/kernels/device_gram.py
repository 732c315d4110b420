"""Sums of a gram on a GPU, through torch; importing this imports torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trakstore.passes.gpu import NotFiniteError
from trakstore.passes.pinned import Upload, to_host
from trakstore.passes.rows import Rows
from trakstore.planning import ranges

# Columns of a strip of the upper triangle: wider ones compute more below the diagonal, narrower ones
# are slower.
STRIP = 2048
# Columns of a square on the diagonal, which becomes symmetric. It is a multiple of that of a gram on
# the CPU, where the caller fills in the lower triangle by squares of that size.
_SQUARE = 1024


class DeviceSums:
    """The upper block triangle of Σᵢ wᵢ φᵢ φᵢᵀ of the rows so far, on a device.

    Products of up to ``together`` rows are summed in their own dtype, then added in float64: adding the
    whole matrix for each tile would take longer than the tile's product.
    """

    def __init__(self, dim: int, dtype: str, together: int, device: str) -> None:
        there = torch.device(device)
        self._dtype, self._together = getattr(torch, dtype), together
        self._total = torch.zeros((dim, dim), dtype=torch.float64, device=there)
        self._product = torch.zeros((dim, dim), dtype=self._dtype, device=there)
        self._features = Upload(there)
        self._roots = Upload(there, self._features.streams)
        self._waiting, self.used = 0, 0

    def add(self, rows: Rows, start: int, stop: int, roots: NDArray[Any] | None) -> None:
        """Add rows start..stop, times the square roots of their weights, shape (stop - start,)."""
        with self._features.widened(rows, start, stop, self._dtype) as tile:
            if roots is None:
                self._multiply(tile)
                self.used += len(tile)
                return
            with self._roots.sent(roots) as root:
                # A row without weight may hold NaN, which times 0 is NaN.
                scaled = torch.where(root[:, None] == 0, 0, tile * root[:, None])
            self._multiply(scaled)
            self.used += int(np.count_nonzero(roots))

    def matrix(self) -> NDArray[np.float64]:
        """Return the sum: its upper triangle, and squares on the diagonal that are symmetric.

        Raises
        ------
        NotFiniteError
            When a row was not finite, or too large.
        """
        self._take_over()
        # Column j's own square has the square of every value in it: one that is not finite shows on the
        # diagonal.
        if not to_host(torch.isfinite(self._total.diagonal()).all()):
            raise NotFiniteError("the gram is not finite")
        for low, high in ranges(len(self._total), _SQUARE):
            square = self._total[low:high, low:high]
            square.copy_(square.triu() + square.triu(1).T)
        return to_host(self._total)

    def _multiply(self, tile: Tensor) -> None:
        for first in range(0, len(tile), self._together):
            part = tile[first : first + self._together]
            if self._waiting + len(part) > self._together:
                self._take_over()
            self._waiting += len(part)
            for low, high in ranges(len(self._product), STRIP):
                self._product[low:high, low:].addmm_(part[:, low:high].T, part[:, low:])

    def _take_over(self) -> None:
        self._total += self._product
        self._product.zero_()
        self._waiting = 0


def device_gram_bytes(dim: int, step: int, stored: int, computed: int) -> int:
    """Return the bytes of one task on a GPU, with tiles of ``step`` rows.

    It has the sum, a product, a square that is made symmetric; two tiles as stored, one as computed,
    and three on the way through its weights.
    """
    matrices = dim * dim * (8 + computed) + 3 * 8 * min(dim, _SQUARE) ** 2
    return matrices + step * dim * (2 * stored + 4 * computed)

"""Dense random signs: P = ±1/√dim, the projection of the TRAK paper.

The sign of (row r, position c, column j) is bit j mod 32 of a hash of (r, c, j div 32). Source:
Achlioptas (2003).
"""

from __future__ import annotations

import math
import threading

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trakstore.features.projectors import loops
from trakstore.features.projectors.dense import Dense
from trakstore.features.projectors.hashing import hash3, keys, mix
from trakstore.features.projectors.pieces import Gathered
from trakstore.features.projectors.projector import remembered
from trakstore.features.projectors.triton import usable
from trakstore.planning import ranges
from trakstore.spec import ParameterSpec, ProjectionSpec

__all__ = ["Rademacher"]

_GENERATION = 8  # of a GPU that multiplies bfloat16
_TILE = 1 << 24  # entries of gathered gradients that are formed at once on a GPU


class Rademacher(Dense):
    """Dense random signs, drawn in strips."""

    def __init__(self, spec: ProjectionSpec, parameters: ParameterSpec) -> None:
        super().__init__(spec, parameters)
        self._own = threading.local()

    def add(self, out: Tensor, name: str, tile: Tensor, first_row: int = 0) -> None:
        """Add the projection of a tile; see :meth:`Projector.add`."""
        if usable(out.device, _GENERATION):
            self._add_on_device(out, name, tile, first_row)
        else:
            super().add(out, name, tile, first_row)

    def add_gathered(self, out: Tensor, gathered: Gathered) -> None:
        """Add rows that an index picks, in tiles of rows that any sample has."""
        if not usable(out.device, _GENERATION):
            super().add_gathered(out, gathered)
            return
        values = gathered.values.to(torch.float32)
        used, which = torch.unique(gathered.index, return_inverse=True)
        for lo, hi in ranges(len(used), max(1, _TILE // (len(values) * values.shape[2]))):
            picked = which[:, None] == torch.arange(lo, hi, device=out.device)[:, None]
            rows = used[lo:hi].to(torch.int32)
            self._add_on_device(out, gathered.name, picked.to(torch.float32) @ values, rows=rows)

    def _add_on_device(
        self, out: Tensor, name: str, tile: Tensor, first_row: int = 0, rows: Tensor | None = None
    ) -> None:
        from trakstore.features.projectors.triton.signs import add_signs

        tile = tile.to(torch.float32).contiguous()
        add_signs(out, tile, self._key(name), first_row, rows)

    @remembered
    def _key(self, name: str) -> tuple[int, ...]:
        return keys(self.spec, name, self.shapes[name], "signs")

    @remembered
    def _hashed_columns(self, name: str) -> NDArray[np.uint32]:
        """Return the hash of each word of 32 columns, which all entries share."""
        hashed = mix(torch.arange(-(-self.dim // 32)) ^ self._key(name)[2])
        return hashed.numpy().astype(np.uint32)

    def strip(
        self, name: str, entries: tuple[int, int], columns: tuple[int, int], device: torch.device
    ) -> Tensor:
        """Return a part of Pᵀ; see :meth:`Dense.strip`."""
        start, stop = entries
        _, rest = self.matrices[name]
        key, words = self._key(name), slice(columns[0] // 32, -(-columns[1] // 32))
        if device.type != "cpu":
            index = torch.arange(start, stop, device=device)
            drawn = self._signs(key, index // rest, index % rest, words)
            return drawn[:, : columns[1] - columns[0]] / math.sqrt(self.dim)
        strip = self._buffer(columns[1] - columns[0], stop - start)
        value = np.float32(1 / math.sqrt(self.dim))
        hashed = self._hashed_columns(name)[words]
        loops.draw_signs(strip, start, rest, key[0], key[1], hashed, value)
        return torch.from_numpy(strip).T

    def _buffer(self, rows: int, columns: int) -> NDArray[np.float32]:
        """Return memory of this thread, used again and again."""
        # A strip of new memory would be written to pages that the system has to clear first; and it
        # would not be in the cache.
        held: NDArray[np.float32] | None = getattr(self._own, "buffer", None)
        if held is None or held.size < rows * columns:
            held = self._own.buffer = np.empty(rows * columns, np.float32)
        return held[: rows * columns].reshape(rows, columns)

    def _signs(self, key: tuple[int, ...], row: Tensor, position: Tensor, words: slice) -> Tensor:
        word = torch.arange(words.start, words.stop, device=row.device)
        drawn = hash3(row[:, None], position[:, None], word[None], key)
        bits = (drawn[:, :, None] >> torch.arange(32, device=row.device)) & 1
        return (1 - 2 * bits).reshape(len(row), -1).to(torch.float32)

"""Dense random projections: strips of P are drawn from a counter, used for all samples, and dropped.

A strip stays in its core's cache. Drawing it costs as much as multiplying it with about ten samples, so
that batches of 64 or more come close to the speed of a matrix product.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from trakstore.features.projectors.pieces import Gathered, Outer
from trakstore.features.projectors.projector import Projector
from trakstore.features.projectors.threads import shared
from trakstore.planning import ranges

__all__ = ["Dense"]

_ENTRIES = 512  # of a gradient that a strip is for
_COLUMNS = 512  # of P that it has
_STRIP = 1 << 22  # entries of P that are drawn at once where it is not in a cache
_TILE = 1 << 22  # entries of gradients that are formed at once: 16 MB
_FACTOR = 1 << 18  # entries of a factor that a thread unfolds at once
_MULTIPLY = 0.02  # nanoseconds a multiplication


class Dense(Projector):
    """φ = Σ_entries g[entry]·P[entry], where P is never held."""

    @abstractmethod
    def strip(
        self, name: str, entries: tuple[int, int], columns: tuple[int, int], device: torch.device
    ) -> Tensor:
        """Return a part of Pᵀ, which lives until the thread's next call.

        Parameters
        ----------
        name : str
            Canonical name of the parameter, which is seen as flat.
        entries, columns : tuple of int
            First one, and the one after the last. The first column is a multiple of 512.
        device : torch.device

        Returns
        -------
        Tensor, shape (entries, columns), float32
            Any strides.
        """

    def add(self, out: Tensor, name: str, tile: Tensor, first_row: int = 0) -> None:
        """Add the projection of a tile; see :meth:`Projector.add`."""
        batch, rows, rest = tile.shape
        flat = tile.reshape(batch, rows * rest).to(torch.float32)
        strips = list(ranges(rows * rest, self._entries(out.device)))
        if out.device.type != "cpu":
            for lo, hi in strips:
                self._add_strip(out, name, flat[:, lo:hi], first_row * rest + lo)
            return

        def work(total: Tensor, start: int, stop: int) -> None:
            for lo, hi in strips[start:stop]:
                self._add_strip(total, name, flat[:, lo:hi], first_row * rest + lo)

        self._add_shared(out, len(strips), flat.numel(), work)

    def add_outer(self, out: Tensor, outer: Outer) -> None:
        """Add a product of factors, in tiles of all samples and some rows, since P is of rows."""
        if out.device.type != "cpu":
            super().add_outer(out, outer)
            return
        batch, columns = outer.batch, outer.columns
        most = min(outer.rows, max(1, _TILE // (batch * columns)))
        step = max(1, _FACTOR // (outer.positions * max(columns, outer.rows)))
        buffer = torch.empty(batch * most * columns, dtype=torch.float32, device=out.device)
        for lo, hi in ranges(outer.rows, most):
            tile = buffer[: batch * (hi - lo) * columns].view(batch, hi - lo, columns)

            def form(
                start: int, stop: int, lo: int = lo, hi: int = hi, tile: Tensor = tile
            ) -> None:
                for a, b in ranges(stop - start, step):
                    first, last = start + a, start + b
                    left, right = outer.factors(first, last)
                    torch.bmm(left[:, :, lo:hi].transpose(1, 2), right, out=tile[first:last])

            shared(batch, tile.numel() * outer.positions * _MULTIPLY, form)
            self.add(out, outer.name, tile, outer.first_row + lo)

    def add_gathered(self, out: Tensor, gathered: Gathered) -> None:
        """Add rows that an index picks: the strips of each are multiplied with its values alone."""
        if out.device.type != "cpu":
            super().add_gathered(out, gathered)
            return
        index, values = gathered.index.reshape(-1), gathered.values.to(torch.float32).flatten(0, 1)
        used, counts = torch.unique(index, return_counts=True)
        order, ends = index.argsort(stable=True), counts.cumsum(0).tolist()
        samples, rest = order // gathered.index.shape[1], values.shape[1]
        rows = list(zip(used.tolist(), [0, *ends], ends, strict=False))

        def work(total: Tensor, start: int, stop: int) -> None:
            for row, first, last in rows[start:stop]:
                mine = values[order[first:last]]
                projected = out.new_zeros(len(mine), self.dim)
                for lo, hi in ranges(rest, _ENTRIES):
                    self._add_strip(projected, gathered.name, mine[:, lo:hi], row * rest + lo)
                total.index_add_(0, samples[first:last], projected)

        self._add_shared(out, len(rows), values.numel(), work)

    def _add_shared(
        self, out: Tensor, size: int, entries: int, work: Callable[[Tensor, int, int], None]
    ) -> None:
        """Let threads add parts of so many entries' projections, each to a sum of its own."""
        totals: dict[int, Tensor] = {}

        def add(start: int, stop: int) -> None:
            totals[start] = torch.zeros_like(out)
            work(totals[start], start, stop)

        shared(size, entries * self.dim * _MULTIPLY, add)
        # In a fixed order, whichever thread was first, since the rounding of sums depends on it.
        for start in sorted(totals):
            out += totals[start]

    def _entries(self, device: torch.device) -> int:
        """Return the entries of a strip: many where drawing it is many small kernels."""
        return _ENTRIES if device.type == "cpu" else max(_ENTRIES, _STRIP // self.dim)

    def _add_strip(self, total: Tensor, name: str, flat: Tensor, first: int) -> None:
        """Add the projection of at most so many entries ``(batch, entries)``."""
        entries = (first, first + flat.shape[1])
        for columns in ranges(self.dim, _COLUMNS if flat.device.type == "cpu" else self.dim):
            strip = self.strip(name, entries, columns, flat.device)
            total[:, slice(*columns)].addmm_(flat, strip)

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

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trakstore.features.projectors import loops
from trakstore.features.projectors.hashing import hash1, hash2, keys
from trakstore.features.projectors.pieces import Gathered, Outer
from trakstore.features.projectors.projector import Projector
from trakstore.features.projectors.rotating import add_rotated
from trakstore.features.projectors.sketching import Runs, RunTable, evaluate, plan
from trakstore.features.projectors.threads import shared
from trakstore.features.projectors.triton import usable
from trakstore.spec import ParameterSpec, ProjectionSpec

__all__ = ["SJLT"]

Entries = tuple[NDArray[np.int64], NDArray[np.float32]]

_ADD = 0.2  # nanoseconds to add an entry


class SJLT(Projector):
    """Sparse random signs: s non-zeros for each entry of the gradient."""

    def __init__(self, spec: ProjectionSpec, parameters: ParameterSpec) -> None:
        super().__init__(spec, parameters)
        self._tables: dict[str, list[RunTable]] = {}
        self._merged: dict[tuple[str, int, int], list[Runs]] = {}
        self._single: dict[tuple[str, int, int], list[Entries]] = {}
        self._drawn_with: dict[tuple[str, int], tuple[tuple[int, ...], tuple[int, ...]]] = {}

    def add(self, out: Tensor, name: str, tile: Tensor, first_row: int = 0) -> None:
        """Add the sketch of a tile; see :meth:`Projector.add`."""
        if out.device.type != "cpu":
            if usable(out.device):
                self._add_on_device(out, name, tile, first_row)
            else:
                self._rotate(out, name, tile, first_row)
            return
        tile = tile.float().contiguous()
        self._fits(name, first_row, first_row + tile.shape[1], tile.shape[2])
        batch, rows, rest = tile.shape
        if rest == 1 or rows * rest <= self.dim:
            total, entries = out.numpy(), tile.numpy().reshape(batch, -1)
            for offsets, signs in self._entries_of(name, first_row, rows):
                loops.add_entries(total, entries, offsets, signs)
            return
        tables, scale = self._rows_of(name, first_row, tile.shape[1]), 1 / math.sqrt(self.spec.s)

        def work(start: int, stop: int) -> None:
            own, part = out[start:stop].numpy(), tile[start:stop].numpy()
            for table in tables:
                wide = np.zeros((stop - start, 2 * self.dim), np.float32)
                loops.add_tile(wide, part, table.offsets, table.signs, table.signs2)
                loops.fold(own, wide, scale)

        shared(len(tile), tile.numel() * self.spec.s * _ADD, work)

    def add_outer(self, out: Tensor, outer: Outer) -> None:
        """Add a product of two factors, by the evaluation that is cheapest for its shape."""
        if out.device.type != "cpu":
            super().add_outer(out, outer)
            return
        self._fits(outer.name, outer.first_row, outer.first_row + outer.rows, outer.columns)
        copies = self._merged_rows_of(outer.name, outer.first_row, outer.rows)
        chosen = plan(outer.positions, outer.rows, outer.columns, self.dim)

        def work(start: int, stop: int) -> None:
            evaluate(chosen.kind, out, outer, copies, start, stop)

        shared(outer.batch, chosen.nanoseconds * outer.batch * self.spec.s, work)

    def add_gathered(self, out: Tensor, gathered: Gathered) -> None:
        """Add rows that an index picks, without the others."""
        if usable(out.device):
            index = gathered.index.to(torch.int32).contiguous()
            self._add_on_device(out, gathered.name, gathered.values, index=index)
            return
        if out.device.type != "cpu":
            super().add_gathered(out, gathered)
            return
        rows, values = gathered.index.contiguous(), gathered.values.float().contiguous()
        if rows.numel():
            first, last = int(rows.min()), int(rows.max())
            self._fits(gathered.name, first, last + 1, values.shape[2])

        def work(start: int, stop: int) -> None:
            for table in self._tables_of(gathered.name):
                wide = np.zeros((stop - start, 2 * self.dim), np.float32)
                loops.add_gathered(
                    wide,
                    rows[start:stop].numpy(),
                    values[start:stop].numpy(),
                    table.offsets,
                    table.signs,
                    table.signs2,
                )
                loops.fold(out[start:stop].numpy(), wide, 1 / math.sqrt(self.spec.s))

        shared(len(rows), values.numel() * self.spec.s * _ADD, work)

    def _fits(self, name: str, first_row: int, last_row: int, rest: int) -> None:
        """Raise unless rows are of a parameter: the inner loops do not look at bounds."""
        own = self.matrices[name]
        if not 0 <= first_row <= last_row <= own[0] or rest != own[1]:
            raise RuntimeError(
                f"rows {first_row} to {last_row} of {rest} are not in parameter {name!r} of {own}"
            )

    def _add_on_device(
        self, out: Tensor, name: str, tile: Tensor, first_row: int = 0, index: Tensor | None = None
    ) -> None:
        """Add a tile, or rows that ``index (batch, rows)`` picks, where there are no inner loops."""
        from trakstore.features.projectors.triton.sparse import add_sketch

        tile = tile.to(torch.float32).contiguous()
        scale = 1 / math.sqrt(self.spec.s)
        for copy in range(self.spec.s):
            add_sketch(out, tile, self._keys(name, copy), scale, first_row, index)

    def _rotate(self, out: Tensor, name: str, tile: Tensor, first_row: int) -> None:
        """Add a tile in plain torch."""
        rows, rest = tile.shape[1:]
        r = torch.arange(first_row, first_row + rows, device=out.device)[:, None]
        c = torch.arange(rest, device=out.device)
        for copy in range(self.spec.s):
            offsets, signs = self._runs(name, copy, r, -(-rest // self.dim))
            signed = tile.to(torch.float32) * self._signs2(name, copy, c)
            add_rotated(out, signed, offsets, signs / math.sqrt(self.spec.s))

    def entries(
        self, name: str, copy: int, first_row: int, rows: int, rest: int, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Columns (int64) and signed values (float32), each of shape ``(rows, rest)``."""
        k, c = self.dim, torch.arange(rest, device=device)
        r = torch.arange(first_row, first_row + rows, device=device)[:, None]
        offset, sign1 = self._runs(name, copy, r, -(-rest // k))
        value = sign1[:, c // k] * self._signs2(name, copy, c) / math.sqrt(self.spec.s)
        return (offset[:, c // k] + c) % k, value

    def _runs(self, name: str, copy: int, rows: Tensor, runs: int) -> tuple[Tensor, Tensor]:
        """Offsets (int64) and signs (float32) of rows ``(n, 1)``, each ``(n, runs)``."""
        run = torch.arange(runs, device=rows.device)[None]
        word = hash2(rows, run, self._keys(name, copy)[0])
        return (word >> 1) * self.dim >> 31, (1 - 2 * (word & 1)).to(torch.float32)

    def _signs2(self, name: str, copy: int, positions: Tensor) -> Tensor:
        return (1 - 2 * (hash1(positions, self._keys(name, copy)[1]) & 1)).to(torch.float32)

    def _keys(self, name: str, copy: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of runs, and of signs of positions."""
        if (name, copy) not in self._drawn_with:
            streams = (f"runs {copy}", f"signs {copy}")
            runs, signs = (keys(self.spec, name, self.shapes[name], one) for one in streams)
            self._drawn_with[name, copy] = runs, signs
        return self._drawn_with[name, copy]

    def _rows_of(self, name: str, first_row: int, rows: int) -> list[RunTable]:
        return [table.rows(first_row, first_row + rows) for table in self._tables_of(name)]

    def _entries_of(self, name: str, first_row: int, rows: int) -> list[Entries]:
        """Columns and signed values of all entries of a few rows, one copy after the other."""
        which = (name, first_row, rows)
        if which not in self._single:
            rest, cpu = self.matrices[name][1], torch.device("cpu")
            copies = [
                self.entries(name, copy, first_row, rows, rest, cpu) for copy in range(self.spec.s)
            ]
            self._single[which] = [(c.flatten().numpy(), v.flatten().numpy()) for c, v in copies]
        return self._single[which]

    def _merged_rows_of(self, name: str, first_row: int, rows: int) -> list[Runs]:
        which = (name, first_row, rows)
        if which not in self._merged:
            self._merged[which] = [Runs(table, self.dim) for table in self._rows_of(*which)]
        return self._merged[which]

    def _tables_of(self, name: str) -> list[RunTable]:
        """The hashes of a parameter, one table a copy."""
        if name not in self._tables:
            rows, rest = self.matrices[name]
            self._tables[name] = [
                self._table(name, copy, rows, rest) for copy in range(self.spec.s)
            ]
        return self._tables[name]

    def _table(self, name: str, copy: int, rows: int, rest: int) -> RunTable:
        r, c = torch.arange(rows)[:, None], torch.arange(rest)
        offsets, signs = self._runs(name, copy, r, -(-rest // self.dim))
        return RunTable(offsets.numpy(), signs.numpy(), self._signs2(name, copy, c).numpy())

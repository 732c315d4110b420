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
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trakstore.features.projectors import loops
from trakstore.features.projectors.collecting import Collecting, Listed, Place
from trakstore.features.projectors.hashing import hash1, hash2, keys
from trakstore.features.projectors.pieces import Gathered, Memory, Outer, part
from trakstore.features.projectors.projector import Projector, Sides, remembered
from trakstore.features.projectors.recent import Recent
from trakstore.features.projectors.run_shares import share_count
from trakstore.features.projectors.sheared import (
    WINDOW,
    Sheared,
    pays,
    tiles_in_turn,
    unfolds_in_place,
)
from trakstore.features.projectors.sketching import Runs, RunTable, evaluate, plan
from trakstore.features.projectors.threads import shared
from trakstore.features.projectors.triton import gathers, usable
from trakstore.features.projectors.waiting_pieces import WaitingPieces
from trakstore.features.projectors.waiting_tiles import TilePlace
from trakstore.features.projectors.waiting_windows import WindowLists
from trakstore.planning import ranges
from trakstore.spec import ParameterSpec, ProjectionSpec

__all__ = ["SJLT"]

_CPU = torch.device("cpu")
_GENERATION = 8  # of a GPU that multiplies bfloat16
_IN_TURN = 9  # of one that does tiles in turn
_ADD = 0.2  # nanoseconds to add an entry
_FORMED = 1 << 26  # entries of gradients that a GPU forms at once
_LISTS = 16  # of small pieces that are kept
_ENTRIES = 1 << 24  # gathered at once by plain torch on a device


class SJLT(Projector):
    """Sparse random signs: s non-zeros for each entry of the gradient.

    Parameters
    ----------
    spec, parameters
        As of :class:`Projector`.
    factors : mapping of name to (rows, columns), optional
        Factors of the rows and columns of gradients. They are in the tables of signs, so that a scale
        costs nothing.
    """

    def __init__(
        self,
        spec: ProjectionSpec,
        parameters: ParameterSpec,
        factors: Mapping[str, Sides] | None = None,
    ) -> None:
        super().__init__(spec, parameters)
        self._factors = factors
        self._lists = Recent[tuple[tuple[Place, ...], torch.device], Listed](_LISTS)
        self._shares = Recent[tuple[tuple[TilePlace, ...], int, torch.device], Tensor](_LISTS)
        self.tile_room = 0
        self.windows = WindowLists(self.dim, 1 / math.sqrt(self.spec.s), len(self.shapes))

    def of_scaled(self, factors: Mapping[str, Sides]) -> SJLT:
        """See :meth:`Projector.of_scaled`."""
        return SJLT(self.spec, ParameterSpec(tuple(self.shapes.items())), factors)

    def of_columns(self, columns: Mapping[str, tuple[int, int]]) -> SJLT:
        """See :meth:`Projector.of_columns`: of those runs that columns are in."""
        made = SJLT(self.spec, ParameterSpec(tuple(self.shapes.items())), self._factors)
        for name, (start, stop) in columns.items():
            rows, rest = self.matrices[name]
            last = min(rest, -(-stop // self.dim) * self.dim)
            # A rank that has no columns is given some, which are zero.
            first = min(start, last - 1) // self.dim * self.dim
            made.first_columns[name], made.matrices[name] = first, (rows, last - first)
        return made

    def collecting(self) -> Collecting:
        """See :meth:`Projector.collecting`: on a GPU many pieces are added by one kernel."""
        return WaitingPieces(self, self.add_listed, lambda device: usable(device))

    def add_listed(self, out: Tensor, places: tuple[Place, ...], entries: Tensor) -> None:
        """Add the sketch of rows of some parameters, ``entries (batch, all)``, on a GPU."""
        from trakstore.features.projectors.triton.listed import add_listed

        add_listed(out, entries, self._lists_of(places, out.device))

    def add(self, out: Tensor, name: str, tile: Tensor, first_row: int = 0) -> None:
        """Add the sketch of a tile; see :meth:`Projector.add`."""
        if usable(out.device):
            self._add_on_device(out, name, tile, first_row)
            return
        if out.device.type != "cpu":
            self._rotate(out, name, tile, first_row)
            return
        tile = tile.float().contiguous()
        batch, rows, rest = tile.shape
        if rest == 1 or rows * rest <= self.dim:
            # Runs are too short to be added as such: each entry has a column of its own.
            self._need_inside(name, first_row, first_row + rows, rest)
            total, entries = out.numpy(), tile.numpy().reshape(batch, -1)
            for offsets, signs in self._columns_of(name, first_row, rows):
                loops.add_entries(total, entries, offsets, signs)
            return
        index = torch.arange(first_row, first_row + rows).expand(batch, rows)
        self.add_gathered(out, Gathered(name, index, tile))

    def add_outer(self, out: Tensor, outer: Outer) -> None:
        """Add a product of two factors, by the evaluation that is cheapest for its shape."""
        if out.device.type != "cpu":
            if not self._add_unfolded(out, outer):
                super().add_outer(out, outer)
            return
        last_row = outer.first_row + outer.rows
        self._need_inside(outer.name, outer.first_row, last_row, outer.columns)
        copies = self._merged_rows_of(outer.name, outer.first_row, last_row)
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
            self._need_inside(gathered.name, first, last + 1, values.shape[2])

        def work(start: int, stop: int) -> None:
            own, at, given = (one[start:stop].numpy() for one in (out, rows, values))
            for table in self._tables_of(gathered.name):
                wide = np.zeros((stop - start, 2 * self.dim), np.float32)
                loops.add_gathered(wide, at, given, table.offsets, table.signs, table.signs2)
                loops.fold(own, wide, 1 / math.sqrt(self.spec.s))

        shared(len(rows), values.numel() * self.spec.s * _ADD, work)

    def _need_inside(self, name: str, first_row: int, last_row: int, rest: int) -> None:
        """Raise unless rows are of a parameter: the inner loops do not look at bounds."""
        own = self.matrices[name]
        if not 0 <= first_row <= last_row <= own[0] or rest != own[1]:
            raise RuntimeError(
                f"rows {first_row} to {last_row} of {rest} are not in parameter {name!r} of {own}"
            )

    def _add_on_device(
        self, out: Tensor, name: str, tile: Tensor, first_row: int = 0, index: Tensor | None = None
    ) -> None:
        """Add a tile, or rows that ``index (batch, rows)`` picks, by the kernel of a GPU."""
        from trakstore.features.projectors.triton.sparse import add_sketch

        scale, factors = 1 / math.sqrt(self.spec.s), self._sides(name, out.device)
        run = self._first(name) // self.dim
        for copy in range(self.spec.s):
            add_sketch(out, tile, self._keys(name, copy), scale, first_row, index, factors, run)

    def sheared(self, out: Tensor, outer: Outer) -> tuple[Sheared, torch.dtype] | None:
        """Return how a product is sketched with its rows merged, if that is faster on this device.

        Returns
        -------
        Sheared, torch.dtype
            Table of its rows, and the dtype in which its factors are multiplied.
        """
        if self.dim < WINDOW or not usable(out.device, _GENERATION) or not gathers():
            return None
        last_row = outer.first_row + outer.rows
        # Older tensor cores keep a tile in registers of which none are left for the next one.
        in_turn = tiles_in_turn(outer.positions) if usable(out.device, _IN_TURN) else 1
        table = self._sheared_rows_of(outer.name, outer.first_row, last_row, out.device, in_turn)
        low, sizes = outer.low_dtype, (outer.positions, outer.rows, outer.columns)
        in_place = outer.unfolded is not None
        faster = pays(table, *sizes, low=low is not None, unfolded=in_place)
        return (table, low or torch.float32) if faster else None

    def _unfolded_dtype(self, out: Tensor, outer: Outer) -> torch.dtype | None:
        """Return the dtype in which a product is formed of what is not unfolded, if that is faster."""
        if outer.unfolded is None or not usable(out.device, _GENERATION):
            return None
        faster = unfolds_in_place(outer.positions, outer.rows, outer.columns)
        return outer.low_dtype if faster else None

    def form(self, out: Tensor, outer: Outer, memory: Memory) -> Tensor:
        """Form the gradients of a product in some memory, on a GPU."""
        dtype = self._unfolded_dtype(out, outer)
        if dtype is None or outer.unfolded is None:
            return outer.formed_in(memory)
        from trakstore.features.projectors.triton.shear import formed

        return formed(outer.left, outer.unfolded(0, outer.batch), dtype, memory)

    def sums_of(self, batch: int, rows: int, columns: int) -> int:
        """Return the count of numbers that programs sum of a gradient, before features have them."""
        return self.spec.s * share_count(batch, rows, columns, self.dim) * batch * self.dim

    def add_tiles(self, out: Tensor, memory: Tensor, places: tuple[TilePlace, ...]) -> None:
        """Add the sketch of gradients that lie in some memory, on a GPU."""
        from trakstore.features.projectors.triton.sparse import add_sketches

        key = places, len(out), out.device
        shares = self._shares.of(key, lambda: self._shares_of(*key))
        add_sketches(out, memory, shares, 1 / math.sqrt(self.spec.s))

    def _shares_of(self, places: tuple[TilePlace, ...], batch: int, device: torch.device) -> Tensor:
        from trakstore.features.projectors.triton.sparse import shares_of

        shares = [
            share
            for place in places
            for copy in range(self.spec.s)
            for share in shares_of(
                *(place, self._keys(place.name, copy), batch, self.dim),
                first_run=self._first(place.name) // self.dim,
            )
        ]
        return torch.tensor(shares, dtype=torch.int32).to(device)

    @property
    def scaled(self) -> bool:
        """Tell whether gradients are multiplied with factors."""
        return self._factors is not None

    def _add_unfolded(self, out: Tensor, outer: Outer) -> bool:
        """Add a product of which no right factor is written, if that is faster; tell whether it is."""
        dtype = self._unfolded_dtype(out, outer)
        if dtype is None or outer.unfolded is None:
            return False
        from trakstore.features.projectors.triton.shear import formed

        for start, stop in ranges(outer.batch, max(1, _FORMED // (outer.rows * outer.columns))):
            tile = formed(part(outer.left, start, stop), outer.unfolded(start, stop), dtype)
            self.add(part(out, start, stop), outer.name, tile, outer.first_row)
        return True

    def _rotate(self, out: Tensor, name: str, tile: Tensor, first_row: int) -> None:
        """Add a tile in plain torch, on a device without kernels of its own."""
        # A run of k positions falls on the features rotated by its offset, so each feature gathers one
        # position of each run, and rows are summed: nothing is scattered, as the order of scattered
        # sums on a GPU differs from run to run, and with it their last bits.
        rows, rest = tile.shape[1:]
        r = torch.arange(first_row, first_row + rows, device=out.device)[:, None]
        c = torch.arange(rest, device=out.device)
        for copy in range(self.spec.s):
            offsets, signs = self._runs(name, copy, r, -(-rest // self.dim))
            signs, signs2 = self._scaled(
                name, r, c, signs / math.sqrt(self.spec.s), self._signs2(name, copy, c)
            )
            signed = tile.to(torch.float32) * signs2
            for lo, hi in ranges(rows, max(1, _ENTRIES // (len(tile) * self.dim))):
                for run, (first, last) in enumerate(ranges(rest, self.dim)):
                    part = signed[:, lo:hi, first:last]
                    out += _rotated(part, offsets[lo:hi, run], signs[lo:hi, run], self.dim)

    def entries(
        self, name: str, copy: int, first_row: int, rows: int, rest: int, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Return columns (int64) and signed values (float32), each of shape ``(rows, rest)``."""
        k, c = self.dim, torch.arange(rest, device=device)
        r = torch.arange(first_row, first_row + rows, device=device)[:, None]
        offset, sign1 = self._runs(name, copy, r, -(-rest // k))
        sign1, sign2 = self._scaled(name, r, c, sign1, self._signs2(name, copy, c))
        value = sign1[:, c // k] * sign2 / math.sqrt(self.spec.s)
        return (offset[:, c // k] + c) % k, value

    def _runs(self, name: str, copy: int, rows: Tensor, runs: int) -> tuple[Tensor, Tensor]:
        """Return offsets (int64) and signs (float32) of rows ``(n, 1)``, each ``(n, runs)``."""
        run = torch.arange(runs, device=rows.device)[None] + self._first(name) // self.dim
        word = hash2(rows, run, self._keys(name, copy)[0])
        # The lowest bit is the sign, and the 31 others, as a fraction of 2³¹, the offset: a product
        # and a shift instead of a remainder, which favours no offset more than the bits allow.
        return (word >> 1) * self.dim >> 31, (1 - 2 * (word & 1)).to(torch.float32)

    def _signs2(self, name: str, copy: int, positions: Tensor) -> Tensor:
        true = positions + self._first(name)
        return (1 - 2 * (hash1(true, self._keys(name, copy)[1]) & 1)).to(torch.float32)

    def _first(self, name: str) -> int:
        """Return the column of a parameter that is the first of those given, at the start of a run."""
        return self.first_columns.get(name, 0)

    def _scaled(
        self, name: str, rows: Tensor, columns: Tensor, signs: Tensor, signs2: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Multiply signs of rows ``(n, runs)`` and of columns with the factors that there are."""
        sides = self._sides(name, rows.device)
        return (
            (signs, signs2)
            if sides is None
            else (signs * sides[0][rows], signs2 * sides[1][columns])
        )

    @remembered
    def _sides(self, name: str, device: torch.device) -> Sides | None:
        if self._factors is None:
            return None
        rows, columns = self._factors[name]
        columns = columns.narrow(0, self._first(name), self.matrices[name][1])
        return rows.to(device), columns.to(device)

    @remembered
    def _keys(self, name: str, copy: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the keys of runs, and of signs of positions."""
        streams = (f"runs {copy}", f"signs {copy}")
        runs, signs = (keys(self.spec, name, self.shapes[name], one) for one in streams)
        return runs, signs

    @remembered
    def _columns_of(
        self, name: str, first_row: int, rows: int
    ) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Return columns and signed values of all entries of a few rows, for each copy."""
        rest = self.matrices[name][1]
        copies = [
            self.entries(name, copy, first_row, rows, rest, _CPU) for copy in range(self.spec.s)
        ]
        return [(c.flatten().numpy(), v.flatten().numpy()) for c, v in copies]

    @remembered
    def _merged_rows_of(self, name: str, first_row: int, last_row: int) -> list[Runs]:
        return [Runs(one.rows(first_row, last_row), self.dim) for one in self._tables_of(name)]

    def _lists_of(self, places: tuple[Place, ...], device: torch.device) -> Listed:
        """Return the entries of each feature, for rows of some parameters one after another."""
        return self._lists.of((places, device), lambda: self._listed(places, device))

    def _listed(self, places: tuple[Place, ...], device: torch.device) -> Listed:
        # Experts of a mixture make other places of almost every batch: what is sent to a device is
        # kept for each place, and what is made for all of them is made there.
        columns, values = list[Tensor](), list[Tensor]()
        for copy in range(self.spec.s):
            each = [self._entries_of(place, copy, device) for place in places]
            columns.append(torch.cat([one for one, _ in each]))
            values.append(torch.cat([one for _, one in each]))
        return Listed.of(columns, values, self.dim)

    @remembered
    def _entries_of(self, place: Place, copy: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return columns (int32) and signed values of all entries of a few rows, on a device."""
        name, first, last = place
        rest = self.matrices[name][1]
        columns, values = self.entries(name, copy, first, last - first, rest, _CPU)
        return columns.flatten().to(device, torch.int32), values.flatten().to(device)

    @remembered
    def _sheared_rows_of(
        self, name: str, first_row: int, last_row: int, device: torch.device, in_turn: int
    ) -> Sheared:
        tables = [one.rows(first_row, last_row) for one in self._tables_of(name)]
        return Sheared.of(tables, self.dim, device, in_turn)

    @remembered
    def _tables_of(self, name: str) -> list[RunTable]:
        """Return the hashes of a parameter, one table a copy."""
        rows, rest = self.matrices[name]
        r, c = torch.arange(rows)[:, None], torch.arange(rest)
        tables = []
        for copy in range(self.spec.s):
            offsets, signs = self._runs(name, copy, r, -(-rest // self.dim))
            signs, signs2 = self._scaled(name, r, c, signs, self._signs2(name, copy, c))
            tables.append(RunTable(offsets.numpy(), signs.numpy(), signs2.numpy()))
        return tables


def _rotated(part: Tensor, offsets: Tensor, signs: Tensor, dim: int) -> Tensor:
    """Return the sketch of one run of some rows, shape (batch, dim)."""
    batch, rows, width = part.shape
    position = (torch.arange(dim, device=part.device) - offsets[:, None]) % dim
    weight = signs[:, None] * (position < width)
    index = position.clamp(max=width - 1).expand(batch, rows, dim)
    return (part.gather(2, index) * weight).sum(1)

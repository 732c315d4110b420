"""Merged rows of a sparse sketch in groups of near offsets, and whether a GPU gains by them.

Row r of run q falls on the features rotated by its offset h(r, q). Rows of equal offset are merged, as
on the CPU (:mod:`.sketching`), and the merged ones sorted. Then some of them that follow one another
have offsets within a short span, and a tile of their gradients, of 128 positions of the run, falls on a
window of 256 features: it is sheared, row by row, and summed to that window on the chip, and 256
numbers are written where there were thousands. The window of the next 128 positions begins 128
features later. So one program that goes through p tiles of the run writes (p + 1)·128 numbers, and no
feature twice: with few positions, where writing them costs more than the products, p is 4.

Bytes and operations, counted before a kernel was written, of a sample's gradient of ``rows x columns``
from T positions, with D merged rows of k offsets:

====================  =====================================  =======================================
                      tiles through memory                   sheared on the chip
====================  =====================================  =======================================
operations            2·T·rows·columns                       2·T·D·columns, D = k·(1 - e^(-rows/k))
bytes of gradients    8·rows·columns (float32, both ways)    8·(1 + 1/p)·D·columns/group
bytes of factors      as in training                         and 2·T·(rows + D) for merged rows
====================  =====================================  =======================================

For the linear layers of 1.1e9 parameters at batch 8 x 512 and dim 4,096 that is 66 GB and 8.5 TFLOP
against 12 GB and 5.4 TFLOP (those layers that are formed as before among them). With many more features
than rows offsets are far from one another, groups small, and the first way is cheaper: it is chosen
then, by numbers that depend on shapes and hashes alone. In float32, where no tensor core multiplies,
tiles are formed in memory as before, but of merged rows. No card has measured the constants of the
second way yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trakstore.features.projectors.sketching import RunTable
from trakstore.planning import ranges

__all__ = [
    "COLUMNS",
    "FEATURES",
    "FEW_ROWS",
    "ROWS",
    "WINDOW",
    "Sheared",
    "Windows",
    "pays",
    "tiles_in_turn",
    "unfolds_in_place",
]

ROWS, COLUMNS = 128, 128  # of a tile
FEW_ROWS = 64  # of a tile that is not sheared
WINDOW = 256  # features that rows of a group fall on
FEATURES = 128  # of a tile of features, and of half a window, as windows are written
_GROUPS = (64, 32, 16)  # rows of a group, at most
_USUAL = 512  # positions for which the size of groups is chosen
_FEW, _IN_TURN = 128, 4  # positions up to which a program does several tiles, and how many then

# Bytes and operations in a picosecond of an H100, as far as was measured: sketches read at 2.3 TB/s,
# stacks of products run at 500 TFLOP/s in 16 bits, at 50 in float32. Assumed, and not measured: 300
# TFLOP/s for products in Triton, and a cycle of a multiprocessor for 4 entries that are sheared.
_READ, _STACKED, _WHOLE, _TRITON, _SHEAR = 2.3, 500.0, 50.0, 300.0, 1.1


@dataclass(frozen=True, eq=False)
class Sheared:
    """Rows of a parameter, merged, in groups, for all copies and runs one behind the other.

    A slot is a row of a tile: a merged row, or nothing.

    Attributes
    ----------
    group : int
        Slots of a group.
    tiles : int
        Tiles of a run's columns that a program does in turn.
    entries : int
        Entries of all tiles.
    first : Tensor, int32, shape (slots + 1,)
        Where the rows of each slot begin in the next two,
    rows, signs : Tensor, int32 and float32, shape (all,)
        that have the rows of slots, and the factors that they are merged with.
    shifts : Tensor, int32, shape (slots,)
        Offset of each slot behind that of its group.
    starts : ndarray of int64, shape (programs of a run · (tiles + 1), groups)
        First of the 128 features of each half of a window, one half behind the other, on the CPU; -1
        where there is none.
    runs : Tensor, int32, shape (tiles, 3)
        Of the run of each tile of rows its first column, its columns, and where its copy's signs begin.
    signs2 : Tensor, float32, shape (copies · columns,)
        Factors of columns.
    spans : tuple of (start, width, first, last)
        First column of each run and its columns, its first slot and the end of its last.
    """

    group: int
    tiles: int
    entries: int
    first: Tensor
    rows: Tensor
    signs: Tensor
    shifts: Tensor
    starts: NDArray[np.int64]
    runs: Tensor
    signs2: Tensor
    spans: tuple[tuple[int, int, int, int], ...]

    @property
    def slots(self) -> int:
        """Number of slots, a multiple of a tile's rows."""
        return len(self.shifts)

    @classmethod
    def of(cls, tables: list[RunTable], k: int, device: torch.device, in_turn: int = 1) -> Sheared:
        """Group the rows of some copies' tables, as is cheapest, for tiles that are done in turn."""
        runs = [
            (_MergedRun.of(table, run), start, stop - start, copy * len(table.signs2))
            for copy, table in enumerate(tables)
            for run, (start, stop) in enumerate(ranges(len(table.signs2), k))
        ]
        merged = [run for run, *_ in runs]
        group = min(_GROUPS, key=lambda size: _slots(merged, size) * _entry(_USUAL, size, in_turn))
        each = [run.grouped(group, width) for run, _, width, _ in runs]
        counts, rows, signs, shifts, bases, widths = map(np.concatenate, zip(*each, strict=True))
        tiles = np.array(
            [
                place
                for groups, (_, *place) in zip(each, runs, strict=True)
                for _ in range(len(groups.shifts) // ROWS)
            ]
        )
        integers = (np.concatenate([[0], counts.cumsum()]), rows, shifts, tiles)
        signs2 = np.concatenate([one.signs2 for one in tables])
        first, rows_of, shifts_of, places = (
            torch.from_numpy(one.astype(np.int32)).to(device) for one in integers
        )
        factors = [torch.from_numpy(one).to(device) for one in (signs, signs2)]
        entries = ROWS * int((-(-tiles[:, 1] // COLUMNS) * COLUMNS).sum())
        programs = -(-int(widths.max()) // (in_turn * COLUMNS))
        half = np.tile(np.arange(in_turn + 1), programs)[:, None]
        at = FEATURES * (np.repeat(np.arange(programs), in_turn + 1)[:, None] * in_turn + half)
        # The last half of a program is the second one of its last tile, and no tile begins there.
        there = at - np.where(half > 0, COLUMNS, 0) < widths
        starts = np.where(there, (bases + at) % k, -1)
        ends = np.concatenate([[0], np.cumsum([len(one.shifts) for one in each])]).tolist()
        spans = tuple(
            (start, width, *own)
            for (_, start, width, _), own in zip(runs, pairwise(ends), strict=True)
        )
        tables_of_slots = (first, rows_of, factors[0], shifts_of, starts, places, factors[1])
        return cls(group, in_turn, entries, *tables_of_slots, spans)


class Windows(NamedTuple):
    """Halves of windows of one or more tables one behind the other, by the features they fall on.

    Attributes
    ----------
    first : Tensor, int32, shape (feature tiles + 1,)
        Where the windows begin, in the next two, that fall on a tile of 128 features.
    windows, starts : Tensor, int32, shape (all,)
        Windows by their place among all, and their first features.
    """

    first: Tensor
    windows: Tensor
    starts: Tensor

    @classmethod
    def of(cls, tables: Sequence[Sheared], k: int, device: torch.device) -> Windows:
        """List the windows of tables, in their order."""
        starts = np.concatenate([table.starts.ravel() for table in tables])
        own = np.flatnonzero(starts >= 0)
        # As many features as a tile has fall on that of the first and that of the last; where they
        # wrap around, on the last tile as well, which may be shorter, and on the first.
        tiles = (starts[own][:, None] + [0, FEATURES - 1]) % k // FEATURES
        wraps = own[starts[own] + FEATURES > k]
        count = -(-k // FEATURES)
        pairs = np.concatenate(
            [
                (tiles * len(starts) + own[:, None]).ravel(),
                wraps,
                (count - 1) * len(starts) + wraps,
            ]
        )
        tile, window = np.divmod(np.unique(pairs), len(starts))
        first = np.concatenate([[0], np.bincount(tile, minlength=count).cumsum()])
        integers = (first, window, starts[window])
        return cls(*(torch.from_numpy(one.astype(np.int32)).to(device) for one in integers))


class _Groups(NamedTuple):
    """Slots of one run: how many rows of the parameter each has, and which; and groups."""

    counts: NDArray[np.int64]
    rows: NDArray[np.int64]
    signs: NDArray[np.float32]
    shifts: NDArray[np.int64]
    bases: NDArray[np.int64]
    widths: NDArray[np.int64]


@dataclass(frozen=True)
class _MergedRun:
    offsets: NDArray[np.int64]  # of merged rows, ascending
    place: NDArray[np.int64]  # of each row, into the offsets
    signs: NDArray[np.float32]  # of each row

    @classmethod
    def of(cls, table: RunTable, run: int) -> _MergedRun:
        merged = table.merged(run)
        return cls(merged.offsets, merged.place, merged.signs)

    def starts(self, size: int) -> list[int]:
        """Return where groups of at most ``size`` offsets begin that are within a window's span."""
        span = WINDOW - COLUMNS
        near = np.searchsorted(self.offsets, self.offsets + span, "right").tolist()
        starts, at = list[int](), 0
        while at < len(near):
            starts.append(at)
            at = min(at + size, near[at])
        return starts

    def grouped(self, size: int, width: int) -> _Groups:
        starts = np.array(self.starts(size))
        slots = -(-len(starts) * size // ROWS) * ROWS
        group = np.repeat(np.arange(len(starts)), np.diff([*starts, len(self.offsets)]))
        slot = group * size + np.arange(len(self.offsets)) - starts[group]
        shifts, bases = np.zeros(slots, np.int64), np.zeros(slots // size, np.int64)
        bases[: len(starts)] = self.offsets[starts]
        shifts[slot] = self.offsets - bases[group]
        order = np.argsort(self.place, kind="stable")
        counts = np.zeros(slots, np.int64)
        counts[slot] = np.bincount(self.place, minlength=len(self.offsets))
        widths = np.where(np.arange(len(bases)) < len(starts), width, 0)
        return _Groups(counts, order, self.signs[order], shifts, bases, widths)


def _slots(runs: list[_MergedRun], size: int) -> int:
    return sum(-(-len(run.starts(size)) * size // ROWS) * ROWS for run in runs)


def tiles_in_turn(positions: int) -> int:
    """Return how many tiles of a run's columns a program does in turn.

    Examples
    --------
    >>> tiles_in_turn(64), tiles_in_turn(512)
    (4, 1)
    """
    return _IN_TURN if positions <= _FEW else 1


def _entry(positions: int, group: int, in_turn: int) -> float:
    """Picoseconds of an entry of a tile: its product, its shearing, its part of a window."""
    window = 2 * 4 * (1 + 1 / in_turn) / group / _READ
    return 2 * positions / _TRITON + _SHEAR + window


def pays(
    table: Sheared,
    positions: int,
    rows: int,
    columns: int,
    low: bool = True,
    unfolded: bool = False,
) -> bool:
    """Tell whether a sample is sketched faster by shearing than by tiles of all rows.

    Parameters
    ----------
    table : Sheared
    positions, rows, columns : int
        Sizes of the factors.
    low : bool
        Whether factors are in 16 bits. Those in float32 are multiplied as before, but merged.
    unfolded : bool
        Whether the right factor lies in a smaller tensor.
    """
    copies = len(table.signs2) // columns
    both_ways = 4 * (1 + copies) / _READ
    merging = (2 if low else 4) * positions * (len(table.rows) + table.slots) / _READ
    if not low:
        product = 2 * positions / _WHOLE
        each = product + 8 / _READ + _entry(0, table.group, table.tiles)
        return table.entries * each + merging < rows * columns * (product + both_ways)
    forming = 2 * positions * rows * columns / _STACKED
    if unfolded:
        forming = min(forming + _unfolding(positions, columns), _indexed(positions, rows, columns))
    tiles = forming + rows * columns * both_ways
    return table.entries * _entry(positions, table.group, table.tiles) + merging < tiles


def unfolds_in_place(positions: int, rows: int, columns: int) -> bool:
    """Tell whether gradients are formed faster of an input that is not unfolded in memory before.

    Examples
    --------
    >>> unfolds_in_place(1024, 64, 576), unfolds_in_place(16, 500, 4600)
    (True, True)
    """
    stacked = 2 * positions * rows * columns / _STACKED + _unfolding(positions, columns)
    return _indexed(positions, rows, columns) < stacked


def _unfolding(positions: int, columns: int) -> float:
    """Picoseconds to write windows of an input in 16 bits, and to read them."""
    return 4 * positions * columns / _READ


def _indexed(positions: int, rows: int, columns: int) -> float:
    padded = -(-rows // FEW_ROWS) * FEW_ROWS * -(-columns // COLUMNS) * COLUMNS
    return 2 * positions * padded / _TRITON

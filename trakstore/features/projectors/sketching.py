"""Three evaluations of one sparse sketch, on the CPU.

With a run q of k positions of the rest, out[(h(r, q) + c) mod k] += s1(r, q)·s2(c)·g[r, c]. Rows of
equal offset h(r, q) can be merged before anything else, since

    Σ_r s1(r, q)·left[r] ⊗ s2·right = Σ_m u[m] ⊗ v,   u[m] = Σ_{r: h(r, q) = m} s1(r, q)·left[r],

which leaves at most k rows of any weight. What remains is added as runs of a tile u ⊗ v, or without
the tile (one position), or is a circular convolution of u and v and so a product in the Fourier domain
(TensorSketch: Pham and Pagh, 2013), which costs the same for any weight but counts positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trakstore.features.projectors import loops
from trakstore.features.projectors.pieces import Outer, part
from trakstore.planning import ranges

__all__ = ["Evaluation", "Plan", "RunTable", "Runs", "evaluate", "plan"]

Evaluation = Literal["direct", "tiles", "fourier"]

_BUFFER = 1 << 18  # floats of one buffer of one thread: 1 MB, to stay in its cache


class Merged(NamedTuple):
    """Rows of equal offset, of one run of k positions."""

    offsets: NDArray[np.int64]  # (merged rows,), ascending
    place: NDArray[np.int64]  # (rows,), into the offsets
    starts: NDArray[np.int64]  # (rows,), the offsets themselves
    signs: NDArray[np.float32]  # (rows,)


@dataclass(frozen=True)
class RunTable:
    """The hashes of some rows of one parameter in one copy.

    Attributes
    ----------
    offsets : int64, shape (rows, runs)
    signs : float32, shape (rows, runs)
    signs2 : float32, shape (rest,)
    """

    offsets: NDArray[np.int64]
    signs: NDArray[np.float32]
    signs2: NDArray[np.float32]

    def rows(self, start: int, stop: int) -> RunTable:
        """Return the table of some rows."""
        return RunTable(self.offsets[start:stop], self.signs[start:stop], self.signs2)

    def merged(self, run: int) -> Merged:
        """Return rows of equal offset in a run, whose sum is one row."""
        offsets, index = np.unique(self.offsets[:, run], return_inverse=True)
        own = self.offsets[:, run], self.signs[:, run]
        return Merged(offsets, index, *map(np.ascontiguousarray, own))


class Plan(NamedTuple):
    """An evaluation, and about how many nanoseconds it takes a sample on one thread."""

    kind: Evaluation
    nanoseconds: float


@cache
def plan(positions: int, rows: int, columns: int, k: int) -> Plan:
    """Choose the cheapest evaluation by shapes alone, so that all workers choose the same.

    The constants are of an x86 core of 2024; they need not be right, only fixed.

    Examples
    --------
    >>> plan(1, 256, 64, 512).kind, plan(256, 128, 576, 512).kind, plan(16, 512, 4608, 512).kind
    ('direct', 'tiles', 'fourier')
    """
    merged = k * -math.expm1(rows * math.log1p(-1 / k)) if k > 1 else 1.0  # mean of offsets hit
    runs = -(-columns // k)
    entries, sketches = merged * columns, positions * runs
    transform = 0.09 * k * math.log2(2 * k) * (1 if _smooth(k) else 5)
    costs: dict[Evaluation, float] = {
        "direct": positions * (entries * 0.08 + runs * rows) + 2 * k,
        "tiles": entries * (positions * 0.018 + 0.15) + sketches * rows * 0.6 + 2 * k,
        "fourier": sketches * (2 * transform + 0.6 * k + rows) + 7 * transform,
    }
    kind = min(costs, key=lambda one: costs[one])
    return Plan(kind, costs[kind])


def evaluate(
    kind: Evaluation, out: Tensor, outer: Outer, copies: list[Runs], start: int, stop: int
) -> None:
    """Add the sketch of samples ``start`` to ``stop`` to their rows of ``out``, float32."""
    k, scale = out.shape[1], 1 / math.sqrt(len(copies))
    largest = max(outer.positions * max(outer.rows, outer.columns, k), outer.columns)
    for lo, hi in ranges(stop - start, max(1, _BUFFER // largest)):
        rows = start + lo, start + hi
        left, right = outer.factors(*rows)
        for runs in copies:
            _EVALUATIONS[kind](part(out, *rows), left, right, runs, scale)


class Runs:
    """The runs of a table, each with its columns, merged rows and signs of positions."""

    def __init__(self, table: RunTable, k: int) -> None:
        self.k = k
        self.each = [
            (slice(first, last), table.merged(run), table.signs2[first:last])
            for run, (first, last) in enumerate(ranges(len(table.signs2), k))
        ]


def _direct(out: Tensor, left: Tensor, right: Tensor, runs: Runs, scale: float) -> None:
    wide = np.zeros((len(out), 2 * runs.k), np.float32)
    left_array, right_array = left.contiguous().numpy(), right.numpy()
    for columns, merged, signs2 in runs.each:
        own = np.ascontiguousarray(right_array[:, :, columns])
        loops.add_direct(wide, left_array, own, merged.place, merged.signs, merged.offsets, signs2)
    loops.fold(out.numpy(), wide, scale)


def _tiles(out: Tensor, left: Tensor, right: Tensor, runs: Runs, scale: float) -> None:
    wide = np.zeros((len(out), 2 * runs.k), np.float32)
    for columns, merged, signs2 in runs.each:
        rows = _merged_rows(left, merged)
        own = right[:, :, columns]
        for lo, hi in ranges(len(merged.offsets), max(1, _BUFFER // own[:, 0].numel())):
            tile = torch.bmm(rows[:, lo:hi], own)
            loops.add_runs(wide, tile.numpy(), merged.offsets[lo:hi], signs2)
    loops.fold(out.numpy(), wide, scale)


def _fourier(out: Tensor, left: Tensor, right: Tensor, runs: Runs, scale: float) -> None:
    batch, positions, _ = left.shape
    left_array, right_array = left.contiguous().numpy(), right.numpy()
    both = np.empty((2, batch, positions, runs.k), np.float32)
    sketch, signed = both  # which are transformed at once
    # The sketch of an outer product is the circular convolution of the sketches of its factors: their
    # transforms are multiplied, summed over positions and runs, and transformed back once.
    total = np.zeros((batch, runs.k // 2 + 1), np.complex64)
    for columns, merged, signs2 in runs.each:
        width = len(signs2)
        loops.merge(sketch, left_array, merged.starts, merged.signs)
        np.multiply(right_array[:, :, columns], signs2, out=signed[:, :, :width])
        signed[:, :, width:] = 0
        loops.add_products(total, *torch.fft.rfft(torch.from_numpy(both)).numpy())
    out.add_(torch.fft.irfft(torch.from_numpy(total), n=runs.k), alpha=scale)


_EVALUATIONS: dict[Evaluation, Callable[[Tensor, Tensor, Tensor, Runs, float], None]] = {
    "direct": _direct,
    "tiles": _tiles,
    "fourier": _fourier,
}


def _merged_rows(left: Tensor, merged: Merged) -> Tensor:
    """Sum left factors over rows of equal offset, shape (batch, merged rows, positions)."""
    batch, positions, _ = left.shape
    columns = len(merged.offsets)
    if left.transpose(1, 2).is_contiguous():  # as of a convolution
        rows = torch.empty(batch, columns, positions, dtype=torch.float32)
        loops.merge_rows(rows.numpy(), left.transpose(1, 2).numpy(), merged.place, merged.signs)
        return rows
    sketch = torch.empty(batch, positions, columns, dtype=torch.float32)
    loops.merge(sketch.numpy(), left.contiguous().numpy(), merged.place, merged.signs)
    return sketch.transpose(1, 2)


def _smooth(k: int) -> bool:
    """Tell whether a Fourier transform of this length is fast: it has only small prime factors."""
    for factor in (2, 3, 5, 7, 11, 13):
        while k % factor == 0:
            k //= factor
    return k == 1

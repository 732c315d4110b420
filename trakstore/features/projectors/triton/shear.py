"""A product of factors and its sparse sketch in one kernel: no gradient is written to memory.

Three launches for all runs and copies of a parameter. The first merges rows of the left factor that
fall on the same features. The second multiplies on tensor cores; a tile of float32 sums is sheared
through the chip's shared memory and summed to windows, one for each group of rows. The third adds to
each feature what windows have for it. Every sum has one order and nothing is added atomically, so the
bits are the same in every run. See :mod:`trakstore.features.projectors.sheared`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from trakstore.features.projectors.pieces import Outer, part
from trakstore.features.projectors.products import aligned
from trakstore.features.projectors.sheared import COLUMNS, ROWS, WINDOW, Sheared
from trakstore.planning import ranges

__all__ = ["add_sheared"]

_SLOTS, _POSITIONS = 128, 16  # merged by a program
_STEP = 64  # positions that are multiplied at once
_FEATURES, _GROUPS = 128, 16  # folded by a program, and groups that it looks at at once
_BYTES = 1 << 28  # of merged rows and windows of the samples that are done at once
# Two programs of 8 warps share a multiprocessor's registers: one multiplies while one shears.
_REGISTERS = 128


@triton.jit(do_not_specialize=("positions",))
def _merge(
    left,
    by_sample,
    by_position,
    by_row,
    first,
    rows,
    signs,
    merged,
    positions,
    slots,
    SLOTS: tl.constexpr,
    POSITIONS: tl.constexpr,
):
    """Sums of the rows of each slot, ``left (batch, positions, rows)`` to ``(..., slots)``."""
    slot = tl.program_id(0) * SLOTS + tl.arange(0, SLOTS)
    t = tl.program_id(1) * POSITIONS + tl.arange(0, POSITIONS)
    b = tl.program_id(2).to(tl.int64)
    start = tl.load(first + slot)
    count = tl.load(first + slot + 1) - start
    there = (t < positions)[:, None]
    at = left + b * by_sample + t.to(tl.int64)[:, None] * by_position
    total = tl.zeros([POSITIONS, SLOTS], dtype=tl.float32)
    for i in range(0, tl.max(count, 0)):
        row = tl.load(rows + start + i, mask=i < count, other=0)
        sign = tl.load(signs + start + i, mask=i < count, other=0.0)
        value = tl.load(at + row[None, :] * by_row, mask=there & (i < count)[None, :], other=0.0)
        total += value.to(tl.float32) * sign[None, :]
    out = merged + (b * positions + t[:, None]) * slots + slot[None, :]
    tl.store(out, total.to(merged.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=("positions", "column_tiles"))
def _shear(
    merged,
    right,
    by_sample,
    by_position,
    by_column,
    signs2,
    shifts,
    places,
    windows,
    positions,
    slots,
    column_tiles,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
    GROUP: tl.constexpr,
    WINDOW: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """Windows of one tile: ``(batch, column tiles, groups, WINDOW)``.

    The tile is ``Σ_t merged[t, row]·right[t, column]`` times the signs of columns. Its row r is summed
    to its group's window from position ``shifts[r]`` on.
    """
    tile_c, tile_r, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    start, width = tl.load(places + 3 * tile_r), tl.load(places + 3 * tile_r + 1)
    if tile_c * COLUMNS < width:
        i, j, t = tl.arange(0, ROWS), tl.arange(0, COLUMNS), tl.arange(0, STEP)
        c = tile_c * COLUMNS + j
        inside = c < width
        own = merged + b * positions * slots + tile_r * ROWS
        other = right + b * by_sample + start * by_column
        tile = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
        for step in range(0, positions, STEP):
            at = step + t
            there = (at < positions)[:, None]
            a = tl.load(own + at[:, None] * slots + i[None, :], mask=there, other=0.0)
            r = tl.load(
                other + at[:, None] * by_position + c[None, :] * by_column,
                mask=there & inside[None, :],
                other=0.0,
            )
            tile = tl.dot(tl.trans(a.to(OPERAND)), r.to(OPERAND), tile, input_precision="ieee")
        sign = tl.load(
            signs2 + tl.load(places + 3 * tile_r + 2) + start + c, mask=inside, other=0.0
        )
        tile = tile * sign[None, :]
        # Gathered as one long vector: then values go once through shared memory, where a gather along
        # rows would be shuffles between threads, and eight times as many instructions.
        shift = tl.load(shifts + tile_r * ROWS + i)
        w = tl.arange(0, WINDOW)
        position = w[None, :] - shift[:, None]
        hit = (position >= 0) & (position < COLUMNS)
        index = i[:, None] * COLUMNS + tl.where(hit, position, 0)
        flat = tl.gather(
            tl.reshape(tile, (ROWS * COLUMNS,)), tl.reshape(index, (ROWS * WINDOW,)), 0
        )
        sheared = tl.where(hit, tl.reshape(flat, (ROWS, WINDOW)), 0.0)
        total = tl.sum(tl.reshape(sheared, (ROWS // GROUP, GROUP, WINDOW)), 1)
        group = tile_r * (ROWS // GROUP) + tl.arange(0, ROWS // GROUP)
        place = (b * column_tiles + tile_c) * (slots // GROUP) + group[:, None]
        tl.store(windows + place * WINDOW + w[None, :], total)


@triton.jit(do_not_specialize=("column_tiles", "groups"))
def _fold(
    windows,
    bases,
    widths,
    out,
    dim,
    by_row,
    column_tiles,
    groups,
    scale,
    COLUMNS: tl.constexpr,
    WINDOW: tl.constexpr,
    FEATURES: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """Add to each feature what windows have for it: position ``(m - base - first column) mod dim``."""
    m = tl.program_id(0) * FEATURES + tl.arange(0, FEATURES)
    b = tl.program_id(1).to(tl.int64)
    total = tl.zeros([FEATURES], dtype=tl.float32)
    for tile_c in range(0, column_tiles):
        for first in range(0, groups, GROUPS):
            g = first + tl.arange(0, GROUPS)
            base = tl.load(bases + g, mask=g < groups, other=0)
            full = tile_c * COLUMNS < tl.load(widths + g, mask=g < groups, other=0)
            position = (m[None, :] - base[:, None] - tile_c * COLUMNS) % dim
            position = tl.where(position < 0, position + dim, position)
            place = (b * column_tiles + tile_c) * groups + g[:, None]
            hit = full[:, None] & (position < WINDOW)
            total += tl.sum(tl.load(windows + place * WINDOW + position, mask=hit, other=0.0), 0)
    at = out + b * by_row + m
    tl.store(at, tl.load(at, mask=m < dim, other=0.0) + scale * total, mask=m < dim)


def add_sheared(
    out: Tensor, outer: Outer, table: Sheared, scale: float, dtype: torch.dtype
) -> None:
    """Add the sketch of a product of factors.

    Parameters
    ----------
    out : Tensor, shape (batch, dim), float32
        Changed in place; its rows are contiguous, and dim is at least 256.
    outer : Outer
    table : Sheared
        Merged rows of the parameter's rows that the product has.
    scale : float
        1/√s.
    dtype : torch.dtype
        Dtype of both factors where they are multiplied. Merged rows are rounded to it once.
    """
    column_tiles = triton.cdiv(min(out.shape[1], outer.columns), COLUMNS)
    groups = len(table.bases)
    each = 2 * outer.positions * (table.slots + outer.columns) + 4 * column_tiles * groups * WINDOW
    for start, stop in ranges(outer.batch, max(1, _BYTES // each)):
        right = aligned(outer.make_right(start, stop).to(dtype))
        merged = _merged(part(outer.left, start, stop), table, dtype)
        windows = torch.empty(
            stop - start, column_tiles, groups, WINDOW, dtype=torch.float32, device=out.device
        )
        with torch.cuda.device_of(out):
            _shear[(column_tiles, table.slots // ROWS, stop - start)](
                merged,
                right,
                *right.stride(),
                table.signs2,
                table.shifts,
                table.runs,
                windows,
                outer.positions,
                table.slots,
                column_tiles,
                ROWS=ROWS,
                COLUMNS=COLUMNS,
                STEP=_STEP,
                GROUP=table.group,
                WINDOW=WINDOW,
                # Triton's interpreter multiplies bfloat16 wrongly.
                OPERAND=_OPERANDS[dtype] if out.is_cuda else tl.float32,
                num_warps=8,
                maxnreg=_REGISTERS,
            )
            _fold[(triton.cdiv(out.shape[1], _FEATURES), stop - start)](
                windows,
                table.bases,
                table.widths,
                part(out, start, stop),
                out.shape[1],
                out.stride(0),
                column_tiles,
                groups,
                scale,
                COLUMNS=COLUMNS,
                WINDOW=WINDOW,
                FEATURES=_FEATURES,
                GROUPS=_GROUPS,
            )


_OPERANDS = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


def _merged(left: Tensor, table: Sheared, dtype: torch.dtype) -> Tensor:
    batch, positions, _ = left.shape
    # The interpreter cuts float32 to bfloat16 where a GPU rounds.
    kept = dtype if left.is_cuda else torch.float32
    merged = torch.empty(batch, positions, table.slots, dtype=kept, device=left.device)
    with torch.cuda.device_of(left):
        _merge[(table.slots // _SLOTS, triton.cdiv(positions, _POSITIONS), batch)](
            left,
            *left.stride(),
            table.first,
            table.rows,
            table.signs,
            merged,
            positions,
            table.slots,
            SLOTS=_SLOTS,
            POSITIONS=_POSITIONS,
        )
    return merged

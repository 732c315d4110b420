"""A product of factors and its sparse sketch in one kernel: no gradient is written to memory.

Two launches for all runs and copies of a parameter, and one for those of many. The first merges rows
of the left factor that fall on the same features. The second multiplies on tensor cores; a tile of
float32 sums is sheared through the chip's shared memory and summed to windows, one for each group of
rows. The last (:mod:`.fold`) adds to each feature what windows have for it. Every sum has one order and
nothing is added atomically, so the bits are the same in every run. See
:mod:`trakstore.features.projectors.sheared`.
"""

from __future__ import annotations

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from trakstore.features.projectors.pieces import Memory, Unfolded
from trakstore.features.projectors.products import aligned
from trakstore.features.projectors.sheared import (
    COLUMNS,
    FEW_ROWS,
    ROWS,
    WINDOW,
    Sheared,
)

__all__ = ["formed", "write_windows"]

_SLOTS, _POSITIONS = 128, 16  # merged by a program
_STEP = 64  # positions that are multiplied at once
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


@triton.jit(do_not_specialize=("positions",))
def _shear(
    left,
    left_by_sample,
    left_by_position,
    left_by_row,
    right,
    by_sample,
    by_position,
    by_column,
    position_offsets,
    column_offsets,
    inside_bits,
    column_bits,
    signs2,
    shifts,
    places,
    out,
    out_by_sample,
    positions,
    rows,
    columns,
    INDEXED: tl.constexpr,
    MASKED: tl.constexpr,
    SHEARED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TILES: tl.constexpr,
    STEP: tl.constexpr,
    GROUP: tl.constexpr,
    WINDOW: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """TILES tiles in turn, ``Σ_t left[t, row]·right[t, column]``, or their windows.

    Where INDEXED, the right factor is at ``position_offsets[t] + column_offsets[column]``, as that of a
    convolution is in its input. Where MASKED, it is there if ``inside_bits[t]`` has the bit
    ``column_bits[column]``, and zero otherwise. Where SHEARED, rows are slots, the tile is multiplied
    with the signs of columns, and its row r is summed to its group's window from position ``shifts[r]``
    on. The second half of a window is the first one of the next tile's, and goes on to it; a sample has
    halves ``(programs, TILES + 1, groups, WINDOW / 2)``. Otherwise the tile is a part of ``out (rows,
    columns)``.
    """
    part, tile_r, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    if SHEARED:
        start, width = tl.load(places + 3 * tile_r), tl.load(places + 3 * tile_r + 1)
    else:
        start, width = 0, columns
    half = tl.zeros([ROWS // GROUP, WINDOW // 2], dtype=tl.float32)
    count = tl.minimum(TILES, tl.cdiv(width - part * TILES * COLUMNS, COLUMNS))
    for turn in tl.static_range(TILES):
        if turn < count:
            c = (part * TILES + turn) * COLUMNS + tl.arange(0, COLUMNS)
            inside = c < width
            row, t = tile_r * ROWS + tl.arange(0, ROWS), tl.arange(0, STEP)
            own = left + b * left_by_sample
            other = right + b * by_sample
            if INDEXED:
                across = tl.load(column_offsets + start + c, mask=inside, other=0)
                if MASKED:
                    bit = tl.load(column_bits + start + c, mask=inside, other=0)[None, :]
            else:
                other += start * by_column
                across = c * by_column
            tile = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
            for step in range(0, positions, STEP):
                at = step + t
                there = at < positions
                # Slots are whole tiles.
                known = there[:, None] if SHEARED else there[:, None] & (row < rows)[None, :]
                place = t[:, None] * left_by_position + row[None, :] * left_by_row
                a = tl.load(own + place, mask=known, other=0.0)
                along = t * by_position
                if INDEXED:
                    along = tl.load(position_offsets + at, mask=there, other=0)
                # Beyond the last position no bit is set, nor one of a column that is none.
                if MASKED:
                    bits = tl.load(inside_bits + at, mask=there, other=0)[:, None]
                    found = (bits & bit) != 0
                else:
                    found = there[:, None] & inside[None, :]
                r = tl.load(other + along[:, None] + across[None, :], mask=found, other=0.0)
                tile = tl.dot(tl.trans(a.to(OPERAND)), r.to(OPERAND), tile, input_precision="ieee")
                # Pointers go on, so that no offset of a long sequence leaves 32 bits.
                own += STEP * left_by_position
                other += STEP * by_position  # which is 0 where INDEXED
            if SHEARED:
                half = _write_half(
                    tile, half, signs2, shifts, places, out + b * out_by_sample, tile_r,
                    part * (TILES + 1) + turn, start, c, inside,
                rows, ROWS, COLUMNS, TILES, GROUP, WINDOW,
                )  # fmt: skip
            else:
                here = out + b * out_by_sample + row.to(tl.int64)[:, None] * columns + c[None, :]
                tl.store(here, tile, mask=(row < rows)[:, None] & inside[None, :])
    if SHEARED:
        _write_last(
            half, count, out + b * out_by_sample, tile_r, part * (TILES + 1) + count,
            rows, ROWS, TILES, GROUP, WINDOW,
        )  # fmt: skip


@triton.jit(do_not_specialize=("first_tile",))
def _shear_formed(
    gradients,
    by_sample,
    first_tile,
    signs2,
    shifts,
    places,
    out,
    out_by_sample,
    width,
    rows,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TILES: tl.constexpr,
    GROUP: tl.constexpr,
    WINDOW: tl.constexpr,
):
    """Windows of tiles of one run's ``gradients (batch, slots of the run, width)``, as above."""
    part, own_tile, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    tile_r = first_tile + own_tile
    slot = own_tile * ROWS + tl.arange(0, ROWS)
    start = tl.load(places + 3 * tile_r)
    half = tl.zeros([ROWS // GROUP, WINDOW // 2], dtype=tl.float32)
    count = tl.minimum(TILES, tl.cdiv(width - part * TILES * COLUMNS, COLUMNS))
    for turn in tl.static_range(TILES):
        if turn < count:
            c = (part * TILES + turn) * COLUMNS + tl.arange(0, COLUMNS)
            inside = c < width
            place = slot.to(tl.int64)[:, None] * width + c[None, :]
            tile = tl.load(gradients + b * by_sample + place, mask=inside[None, :], other=0.0)
            half = _write_half(
                tile, half, signs2, shifts, places, out + b * out_by_sample, tile_r,
                part * (TILES + 1) + turn, start, c, inside,
                rows, ROWS, COLUMNS, TILES, GROUP, WINDOW,
            )  # fmt: skip
    _write_last(
        half, count, out + b * out_by_sample, tile_r, part * (TILES + 1) + count,
        rows, ROWS, TILES, GROUP, WINDOW,
    )  # fmt: skip


@triton.jit
def _write_half(
    tile, half, signs2, shifts, places, out, tile_r, at, start, c, inside, rows,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, TILES: tl.constexpr, GROUP: tl.constexpr,
    WINDOW: tl.constexpr,
):  # fmt: skip
    """Add a tile's windows to the half that is there, write it, and return the second half."""
    i = tl.arange(0, ROWS)
    sign = tl.load(signs2 + tl.load(places + 3 * tile_r + 2) + start + c, mask=inside, other=0.0)
    tile = tile * sign[None, :]
    # Gathered as one long vector: then values go once through shared memory, where a gather along
    # rows would be shuffles between threads, and eight times as many instructions.
    shift = tl.load(shifts + tile_r * ROWS + i)
    w = tl.arange(0, WINDOW)
    position = w[None, :] - shift[:, None]
    hit = (position >= 0) & (position < COLUMNS)
    index = i[:, None] * COLUMNS + tl.where(hit, position, 0)
    flat = tl.gather(tl.reshape(tile, (ROWS * COLUMNS,)), tl.reshape(index, (ROWS * WINDOW,)), 0)
    sheared = tl.where(hit, tl.reshape(flat, (ROWS, WINDOW)), 0.0)
    total = tl.sum(tl.reshape(sheared, (ROWS // GROUP, GROUP, WINDOW)), 1)
    if TILES == 1:
        _write(total, out, tile_r, at, rows, ROWS, GROUP, WINDOW // 2)
        return half
    halves = tl.permute(tl.reshape(total, (ROWS // GROUP, 2, WINDOW // 2)), (0, 2, 1))
    first, second = tl.split(halves)
    _write(half + first, out, tile_r, at, rows, ROWS, GROUP, WINDOW // 2)
    return second


@triton.jit
def _write_last(
    half, count, out, tile_r, at, rows,
    ROWS: tl.constexpr, TILES: tl.constexpr, GROUP: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """Write the second half of the last tile's windows: of a single tile it is written already."""
    if TILES > 1 and count > 0:
        _write(half, out, tile_r, at, rows, ROWS, GROUP, WINDOW // 2)


@triton.jit
def _write(
    numbers, out, tile_r, at, rows,
    ROWS: tl.constexpr, GROUP: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Write a half of each group's window, or both, which are one behind the other among all."""
    group = tile_r * (ROWS // GROUP) + tl.arange(0, ROWS // GROUP)
    w = tl.arange(0, numbers.shape[1])
    half, position = w[None, :] // HALF, w[None, :] % HALF
    place = ((at + half) * (rows // GROUP) + group[:, None]) * HALF + position
    tl.store(out + place, numbers)


def write_windows(
    windows: Tensor, left: Tensor, right: Tensor | Unfolded, table: Sheared, dtype: torch.dtype
) -> None:
    """Write the windows of a product of factors.

    Parameters
    ----------
    windows : Tensor, shape (batch, halves of windows of the table, 128), float32
        A sample's are contiguous, samples need not be.
    left : Tensor, shape (batch, positions, rows)
        Factor of rows.
    right : Tensor, shape (batch, positions, columns), or Unfolded
        Factor of columns.
    table : Sheared
        Merged rows of the parameter's rows that the product has.
    dtype : torch.dtype
        Dtype of both factors where they are multiplied. Merged rows are rounded to it once. Products
        in float32 are formed in memory, since no tensor core makes them.
    """
    if dtype == torch.float32 and isinstance(right, Tensor):
        _write_formed(windows, _merged(left, table, dtype), right, table)
        return
    grid = len(table.starts) // (table.tiles + 1), table.slots // ROWS, len(left)
    _multiply(windows, _merged(left, table, dtype), right, table.slots, grid, dtype, table)


def _write_formed(windows: Tensor, merged: Tensor, right: Tensor, table: Sheared) -> None:
    right = right.to(torch.float32)
    for start, width, first, last in table.spans:
        gradients = torch.bmm(merged[:, :, first:last].mT, right[:, :, start : start + width])
        grid = triton.cdiv(width, table.tiles * COLUMNS), (last - first) // ROWS, len(windows)
        with torch.cuda.device_of(windows):
            _shear_formed[grid](
                gradients,
                gradients.stride(0),
                first // ROWS,
                table.signs2,
                table.shifts,
                table.runs,
                windows,
                windows.stride(0),
                width,
                table.slots,
                ROWS=ROWS,
                COLUMNS=COLUMNS,
                TILES=table.tiles,
                GROUP=table.group,
                WINDOW=WINDOW,
                num_warps=8,
                maxnreg=_REGISTERS,
            )


def formed(
    left: Tensor, right: Unfolded, dtype: torch.dtype, memory: Memory | None = None
) -> Tensor:
    """Return gradients ``(batch, rows, columns)``, float32, of an input that is not unfolded."""
    batch, _, rows = left.shape
    columns = len(right.columns)
    memory = memory or partial(torch.empty, dtype=torch.float32, device=left.device)
    out = memory(batch, rows, columns)
    grid = triton.cdiv(columns, COLUMNS), triton.cdiv(rows, FEW_ROWS), batch
    _multiply(out, left.to(dtype), right, rows, grid, dtype)
    return out


def _multiply(
    out: Tensor,
    left: Tensor,
    right: Tensor | Unfolded,
    rows: int,
    grid: tuple[int, int, int],
    dtype: torch.dtype,
    table: Sheared | None = None,
) -> None:
    other: tuple[Tensor | int, ...]
    if isinstance(right, Unfolded):
        x = right.input  # a copy in another dtype might have other strides
        bits = x if right.inside is None else right.inside, x if right.taps is None else right.taps
        other = x, x.stride(0), 0, 0, right.positions, right.columns, *bits
    else:
        x = aligned(right.to(dtype))
        other = x, *x.stride(), x, x, x, x
    hashes = (out, out, out) if table is None else (table.signs2, table.shifts, table.runs)
    limit = {} if table is None else {"maxnreg": _REGISTERS}
    with torch.cuda.device_of(out):
        _shear[grid](
            left,
            *left.stride(),
            *other,
            *hashes,
            out,
            out.stride(0),
            left.shape[1],
            rows,
            out.shape[2],
            INDEXED=isinstance(right, Unfolded),
            MASKED=isinstance(right, Unfolded) and right.inside is not None,
            SHEARED=table is not None,
            ROWS=FEW_ROWS if table is None else ROWS,
            COLUMNS=COLUMNS,
            TILES=1 if table is None else table.tiles,
            STEP=_STEP,
            GROUP=FEW_ROWS if table is None else table.group,
            WINDOW=WINDOW,
            # Triton's interpreter multiplies bfloat16 wrongly.
            OPERAND=_OPERANDS[dtype] if out.is_cuda else tl.float32,
            num_warps=4 if table is None else 8,
            **limit,
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

"""A product of factors and its sparse sketch in one kernel: no gradient is written to memory.

Two launches for all runs and copies of a parameter, and one for those of many. The first merges rows
of the left factor that fall on the same features. The second multiplies on tensor cores; a tile of
float32 sums is sheared through the chip's shared memory and summed to windows, one for each group of
rows. The last adds to each feature what windows have for it. Every sum has one order and nothing is
added atomically, so the bits are the same in every run. See
:mod:`trakstore.features.projectors.sheared`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from trakstore.features.projectors.pieces import Unfolded
from trakstore.features.projectors.products import aligned
from trakstore.features.projectors.sheared import (
    COLUMNS,
    FEATURES,
    FEW_ROWS,
    ROWS,
    WINDOW,
    Sheared,
    Windows,
)

__all__ = ["fold_windows", "formed", "write_windows"]

_SLOTS, _POSITIONS = 128, 16  # merged by a program
_STEP = 64  # positions that are multiplied at once
_LISTED = 16  # windows that a program folds at once
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
    signs2,
    shifts,
    places,
    out,
    out_by_sample,
    positions,
    rows,
    columns,
    INDEXED: tl.constexpr,
    SHEARED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
    GROUP: tl.constexpr,
    WINDOW: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """One tile, ``Σ_t left[t, row]·right[t, column]``, or its windows.

    Where INDEXED, the right factor is at ``position_offsets[t] + column_offsets[column]``, as that of a
    convolution is in its input. Where SHEARED, rows are slots, the tile is multiplied with the signs of
    columns, and its row r is summed to its group's window from position ``shifts[r]`` on; a sample has
    windows ``(column tiles, groups, WINDOW)``. Otherwise it is a part of ``out (rows, columns)``.
    """
    tile_c, tile_r, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    if SHEARED:
        start, width = tl.load(places + 3 * tile_r), tl.load(places + 3 * tile_r + 1)
    else:
        start, width = 0, columns
    if tile_c * COLUMNS < width:
        i, j, t = tl.arange(0, ROWS), tl.arange(0, COLUMNS), tl.arange(0, STEP)
        c = tile_c * COLUMNS + j
        inside, row = c < width, tile_r * ROWS + i
        own = left + b * left_by_sample
        other = right + b * by_sample
        if INDEXED:
            across = tl.load(column_offsets + start + c, mask=inside, other=0)
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
            found = there[:, None] & inside[None, :]
            r = tl.load(other + along[:, None] + across[None, :], mask=found, other=0.0)
            tile = tl.dot(tl.trans(a.to(OPERAND)), r.to(OPERAND), tile, input_precision="ieee")
            # Pointers go on, so that no offset of a long sequence leaves 32 bits.
            own += STEP * left_by_position
            other += STEP * by_position  # which is 0 where INDEXED
        if SHEARED:
            _write_windows(
                tile, signs2, shifts, places, out + b * out_by_sample, tile_r, tile_c, start, c,
                inside, rows, ROWS, COLUMNS, GROUP, WINDOW,
            )  # fmt: skip
        else:
            here = out + b * out_by_sample + row.to(tl.int64)[:, None] * columns + c[None, :]
            tl.store(here, tile, mask=(row < rows)[:, None] & inside[None, :])


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
    GROUP: tl.constexpr,
    WINDOW: tl.constexpr,
):
    """Windows of a tile of one run's ``gradients (batch, slots of the run, width)``."""
    tile_c, own_tile, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    tile_r = first_tile + own_tile
    c = tile_c * COLUMNS + tl.arange(0, COLUMNS)
    inside, slot = c < width, own_tile * ROWS + tl.arange(0, ROWS)
    place = slot.to(tl.int64)[:, None] * width + c[None, :]
    tile = tl.load(gradients + b * by_sample + place, mask=inside[None, :], other=0.0)
    _write_windows(
        tile, signs2, shifts, places, out + b * out_by_sample, tile_r, tile_c,
        tl.load(places + 3 * tile_r), c, inside, rows, ROWS, COLUMNS, GROUP, WINDOW,
    )  # fmt: skip


@triton.jit
def _write_windows(
    tile, signs2, shifts, places, out, tile_r, tile_c, start, c, inside, rows,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
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
    group = tile_r * (ROWS // GROUP) + tl.arange(0, ROWS // GROUP)
    place = (tile_c * (rows // GROUP) + group[:, None]) * WINDOW + w[None, :]
    tl.store(out + place, total)


@triton.jit(do_not_specialize=("dim",))
def _fold(
    windows,
    by_sample,
    first,
    listed,
    starts,
    out,
    dim,
    by_row,
    scale,
    WINDOW: tl.constexpr,
    FEATURES: tl.constexpr,
    LISTED: tl.constexpr,
):
    """Add to each feature what windows have for it, at position ``(m - start) mod dim``."""
    m = tl.program_id(0) * FEATURES + tl.arange(0, FEATURES)
    b = tl.program_id(1).to(tl.int64)
    total = tl.zeros([FEATURES], dtype=tl.float32)
    last = tl.load(first + tl.program_id(0) + 1)
    for i in range(tl.load(first + tl.program_id(0)), last, LISTED):
        at = i + tl.arange(0, LISTED)
        there = at < last
        window = tl.load(listed + at, mask=there, other=0)
        start = tl.load(starts + at, mask=there, other=0)
        position = m[None, :] - start[:, None]
        position = tl.where(position < 0, position + dim, position)
        place = b * by_sample + window.to(tl.int64)[:, None] * WINDOW
        hit = there[:, None] & (position < WINDOW)
        total += tl.sum(tl.load(windows + place + position, mask=hit, other=0.0), 0)
    at = out + b * by_row + m
    tl.store(at, tl.load(at, mask=m < dim, other=0.0) + scale * total, mask=m < dim)


def write_windows(
    windows: Tensor, left: Tensor, right: Tensor | Unfolded, table: Sheared, dtype: torch.dtype
) -> None:
    """Write the windows of a product of factors.

    Parameters
    ----------
    windows : Tensor, shape (batch, windows of the table, 256), float32
        Rows and windows are contiguous, samples need not be.
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
    grid = len(table.starts), table.slots // ROWS, len(left)
    _multiply(windows, _merged(left, table, dtype), right, table.slots, grid, dtype, table)


def _write_formed(windows: Tensor, merged: Tensor, right: Tensor, table: Sheared) -> None:
    right = right.to(torch.float32)
    for start, width, first, last in table.spans:
        gradients = torch.bmm(merged[:, :, first:last].mT, right[:, :, start : start + width])
        grid = triton.cdiv(width, COLUMNS), (last - first) // ROWS, len(windows)
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
                GROUP=table.group,
                WINDOW=WINDOW,
                num_warps=8,
                maxnreg=_REGISTERS,
            )


def formed(left: Tensor, right: Unfolded, dtype: torch.dtype) -> Tensor:
    """Return gradients ``(batch, rows, columns)``, float32, of an input that is not unfolded."""
    batch, _, rows = left.shape
    columns = len(right.columns)
    out = torch.empty(batch, rows, columns, dtype=torch.float32, device=left.device)
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
        other = x, x.stride(0), 0, 0, right.positions, right.columns
    else:
        x = aligned(right.to(dtype))
        other = x, *x.stride(), x, x
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
            SHEARED=table is not None,
            ROWS=FEW_ROWS if table is None else ROWS,
            COLUMNS=COLUMNS,
            STEP=_STEP,
            GROUP=ROWS if table is None else table.group,
            WINDOW=WINDOW,
            # Triton's interpreter multiplies bfloat16 wrongly.
            OPERAND=_OPERANDS[dtype] if out.is_cuda else tl.float32,
            num_warps=4 if table is None else 8,
            **limit,
        )


_OPERANDS = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


def fold_windows(out: Tensor, windows: Tensor, lists: Windows, scale: float) -> None:
    """Add ``scale`` times what windows have to ``out (batch, dim)``, whose rows are contiguous.

    Parameters
    ----------
    out : Tensor, shape (batch, dim), float32
        Changed in place; dim is at least 256.
    windows : Tensor, shape (batch, windows, 256), float32
    lists : Windows
        Lists of these windows.
    scale : float
        1/√s.
    """
    with torch.cuda.device_of(out):
        _fold[(triton.cdiv(out.shape[1], FEATURES), len(out))](
            windows,
            windows.stride(0),
            *lists,
            out,
            out.shape[1],
            out.stride(0),
            scale,
            WINDOW=WINDOW,
            FEATURES=FEATURES,
            LISTED=_LISTED,
        )


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

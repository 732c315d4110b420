"""The sparse sketch on a GPU, by gathering: a program owns some samples and some features.

For one row and run the columns are a rotation, so exactly one entry of the run falls on a feature: with
offset h, feature m takes position (m - h) mod k of the run. A program goes through its runs, reads from
each the piece that falls on its features (contiguous, but for the rotation's seam), and adds it in
registers. All programs together read the gradient once. Nothing is added atomically: programs of the
same output but other runs write partial sums, which are added in one order, so the bits are the same in
every run.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from trakstore.features.projectors.triton.partial_sums import add_partial_sums
from trakstore.features.projectors.triton.words import hash1, hash2, signed

__all__ = ["add_sketch"]

_SAMPLES, _FEATURES = 8, 128  # of a program, which is one warp: 32 entries in flight a thread
_PROGRAMS = 4096  # that fill a large GPU twice
_RUNS = 16  # whole runs that a program should have, for partial sums to cost less than an eighth
_STEPS = 128  # runs, whole or not, that it may have before there are more programs
# never compiled for special values; a dim known to be a multiple of 16 would make threads read every
# fourth entry, as partial sums are then written in fours
_FREE = (
    *("batch", "rows", "items", "share", "dim", "first_row", "first_run"),
    *("run0", "run1", "sign0", "sign1"),
)


@triton.jit
def _signed_piece(
    sample, c, word, start, width, sign0, sign1, row_factor, factors, in_batch, SCALED: tl.constexpr
):
    """Entries at positions ``c`` of a run, with their signs; zero outside of the run."""
    minus = (word ^ hash1(start + c, sign0, sign1)) & 1
    inside = in_batch & (c >= 0) & (c < width)
    sign = (1 - 2 * minus.to(tl.int32)).to(tl.float32)
    if SCALED:
        sign *= row_factor * tl.load(factors + start + c, mask=inside, other=0.0)
    return tl.load(sample + c, mask=inside, other=0.0).to(tl.float32) * sign


@triton.jit(do_not_specialize=_FREE)
def _sketch(
    tile,
    by_sample,
    by_row,
    index,
    row_factors,
    factors,
    partial,
    batch,
    rows,
    rest,
    runs,
    items,
    share,
    dim,
    first_row,
    first_run,
    run0,
    run1,
    sign0,
    sign1,
    GATHERED: tl.constexpr,
    SCALED: tl.constexpr,
    SAMPLES: tl.constexpr,
    FEATURES: tl.constexpr,
):
    """Sums of ``share`` of the ``items = rows · runs`` for some samples and features.

    ``tile (batch, rows, rest)`` begins with a row and a run of the parameter; ``index (batch, rows)``
    where GATHERED, ``row_factors`` of all rows and ``factors (rest,)`` of columns where SCALED,
    ``partial (shares, batch, dim)``. Positions are written as a start plus a range, which the compiler
    knows to be contiguous; with a remainder in it, it would read the samples' dimension first.
    """
    first = tl.program_id(0) * FEATURES
    i = tl.arange(0, FEATURES)[None, :]
    b = (tl.program_id(1) * SAMPLES + tl.arange(0, SAMPLES))[:, None]
    part = tl.program_id(2)
    in_batch = b < batch
    sample = tile + b.to(tl.int64) * by_sample
    total = tl.zeros([SAMPLES, FEATURES], dtype=tl.float32)
    before = first_run * dim  # columns of the parameter that the tile has not
    scales = factors - before
    for item in range(part * share, tl.minimum(items, (part + 1) * share)):
        row = item // runs
        start = (item - row * runs) * dim
        width = tl.minimum(dim, rest - start)
        column = before + start
        if GATHERED:
            r = tl.load(index + b.to(tl.int64) * rows + row, mask=in_batch, other=0)
        else:
            r = first_row + row
        word = hash2(r, first_run + item - row * runs, run0, run1)
        offset = (((word >> 1).to(tl.uint64) * dim) >> 31).to(tl.int32)
        position = first - offset  # of the run, that falls on the first feature
        position = tl.where(position < 0, position + dim, position)
        run = sample + (row.to(tl.int64) * by_row + start)
        factor = tl.load(row_factors + r) if SCALED else 1.0
        here, there = position + i, position - dim + i
        if GATHERED:
            own = in_batch & (here < dim)
            total += _signed_piece(
                run, here, word, column, width, sign0, sign1, factor, scales, own, SCALED
            )
            total += _signed_piece(
                run, there, word, column, width, sign0, sign1, factor, scales, in_batch, SCALED
            )
        else:
            if position < width:
                total += _signed_piece(
                    run, here, word, column, width, sign0, sign1, factor, scales, in_batch, SCALED
                )
            if position + FEATURES > dim:  # the run's first position falls on a later feature
                total += _signed_piece(
                    run, there, word, column, width, sign0, sign1, factor, scales, in_batch, SCALED
                )
    m = first + i
    out = partial + (part.to(tl.int64) * batch + b) * dim + m
    tl.store(out, total, mask=in_batch & (m < dim))


def add_sketch(
    out: Tensor,
    tile: Tensor,
    keys: tuple[tuple[int, ...], tuple[int, ...]],
    scale: float,
    first_row: int = 0,
    index: Tensor | None = None,
    factors: tuple[Tensor, Tensor] | None = None,
    first_run: int = 0,
) -> None:
    """Add one copy of the sketch of a tile.

    Parameters
    ----------
    out : Tensor, shape (batch, dim), float32
        Changed in place.
    tile : Tensor, shape (batch, rows, rest), of floats
        Copied unless entries of a row are side by side.
    keys : two tuples of int
        Keys of the runs' hashes and of the positions' signs.
    scale : float
        1/√s.
    first_row : int
        Row of the parameter that is the tile's first,
    index : Tensor, shape (batch, rows), int32, contiguous, optional
        or rows of the parameter that each sample has.
    factors : two Tensors, float32, optional
        Factors of all rows of the parameter, and of the tile's columns.
    first_run : int
        Run of the parameter that is the tile's first.
    """
    tile = tile if tile.stride(2) == 1 or tile.shape[2] == 1 else tile.contiguous()
    batch, rows, rest = tile.shape
    dim = out.shape[1]
    runs = -(-rest // dim)
    grid = triton.cdiv(dim, _FEATURES), triton.cdiv(batch, _SAMPLES)
    shares = _shares(grid[0] * grid[1], rows, rest, dim)
    share = triton.cdiv(rows * runs, shares)
    partial = torch.empty(shares, batch, dim, dtype=torch.float32, device=out.device)
    runs_keys, signs_keys = (map(signed, key[:2]) for key in keys)
    with torch.cuda.device_of(out):
        _sketch[(*grid, shares)](
            tile,
            tile.stride(0),
            tile.stride(1),
            tile if index is None else index,
            *(factors or (tile, tile)),
            partial,
            batch,
            rows,
            rest,
            runs,
            rows * runs,
            share,
            dim,
            first_row,
            first_run,
            *runs_keys,
            *signs_keys,
            GATHERED=index is not None,
            SCALED=factors is not None,
            SAMPLES=_SAMPLES,
            FEATURES=_FEATURES,
            num_warps=1,
        )
    add_partial_sums(out, partial, scale)


def _shares(programs: int, rows: int, rest: int, dim: int) -> int:
    """Return the number of parts in which runs are added."""
    # It depends on shapes alone: another number would give other last bits.
    whole, steps = rows * rest // (_RUNS * dim), rows * -(-rest // dim) // _STEPS
    return max(1, min(_PROGRAMS // programs, max(whole, steps)))

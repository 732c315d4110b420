"""The sparse sketch on a GPU, by gathering: a program owns some samples and some features.

For one row and run the columns are a rotation, so exactly one entry of the run falls on a feature: with
offset h, feature m takes position (m - h) mod k of the run. A program goes through its runs, reads from
each the piece that falls on its features (contiguous, but for the rotation's seam), and adds it in
registers. All programs together read the gradient once. Nothing is added atomically: programs of the
same output but other runs write partial sums, which are added in one order, so the bits are the same in
every run.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from trakstore.features.projectors.run_shares import FEATURES, SAMPLES, share_count
from trakstore.features.projectors.triton.partial_sums import add_partial_sums
from trakstore.features.projectors.triton.words import hash1, hash2, signed
from trakstore.features.projectors.waiting_tiles import TilePlace
from trakstore.planning import ranges

__all__ = ["add_sketch", "add_sketches", "shares_of"]

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


@triton.jit
def _sums(
    sample,
    index,
    row_factors,
    factors,
    b,
    i,
    first,
    in_batch,
    by_row,
    rows,
    rest,
    runs,
    start_item,
    stop_item,
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
    """Sums of some of the ``rows · runs`` items for some samples and features.

    The tile begins with a row and a run of the parameter; ``factors`` are of its columns. Positions are
    written as a start plus a range, which the compiler knows to be contiguous; with a remainder in it,
    it would read the samples' dimension first.
    """
    total = tl.zeros([SAMPLES, FEATURES], dtype=tl.float32)
    before = first_run * dim  # columns of the parameter that the tile has not
    scales = factors - before
    for item in range(start_item, stop_item):
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
    return total


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
    ``partial (shares, batch, dim)``.
    """
    first = tl.program_id(0) * FEATURES
    i = tl.arange(0, FEATURES)[None, :]
    b = (tl.program_id(1) * SAMPLES + tl.arange(0, SAMPLES))[:, None]
    part = tl.program_id(2)
    in_batch = b < batch
    sample = tile + b.to(tl.int64) * by_sample
    total = _sums(
        sample, index, row_factors, factors, b, i, first, in_batch, by_row, rows, rest, runs,
        part * share, tl.minimum(items, (part + 1) * share), dim, first_row, first_run,
        run0, run1, sign0, sign1, GATHERED, SCALED, SAMPLES, FEATURES,
    )  # fmt: skip
    m = first + i
    out = partial + (part.to(tl.int64) * batch + b) * dim + m
    tl.store(out, total, mask=in_batch & (m < dim))


@triton.jit(do_not_specialize=("batch", "dim"))
def _sketch_tiles(
    tiles,
    shares,
    partial,
    batch,
    dim,
    SHARE: tl.constexpr,
    SAMPLES: tl.constexpr,
    FEATURES: tl.constexpr,
):
    """Sums of the items of a share for some samples and features, of tiles that lie in one memory.

    ``shares (all, SHARE)`` are of the tiles one after another, see :class:`Share`, ``partial (all,
    batch, dim)``.
    """
    first = tl.program_id(0) * FEATURES
    i = tl.arange(0, FEATURES)[None, :]
    b = (tl.program_id(1) * SAMPLES + tl.arange(0, SAMPLES))[:, None]
    part = tl.program_id(2)
    in_batch = b < batch
    own = shares + part * SHARE
    by_sample, by_row = tl.load(own + 1), tl.load(own + 2)
    first_row, rest, runs = tl.load(own + 3), tl.load(own + 4), tl.load(own + 5)
    start, stop = tl.load(own + 6), tl.load(own + 7)
    run0, run1 = tl.load(own + 8), tl.load(own + 9)
    sign0, sign1 = tl.load(own + 10), tl.load(own + 11)
    first_run = tl.load(own + 12)
    sample = tiles + tl.load(own) + b.to(tl.int64) * by_sample
    total = _sums(
        sample, tiles, tiles, tiles, b, i, first, in_batch, by_row, 0, rest, runs,
        start, stop, dim, first_row, first_run, run0, run1, sign0, sign1,
        False, False, SAMPLES, FEATURES,
    )  # fmt: skip
    m = first + i
    out = partial + (part.to(tl.int64) * batch + b) * dim + m
    tl.store(out, total, mask=in_batch & (m < dim))


class Share(NamedTuple):
    """Items of a tile that one program sums, all as numbers of 32 bits.

    Attributes
    ----------
    offset, by_sample, by_row : int
        First entry of the tile in the memory of all, and its strides.
    first_row, columns, runs : int
        First row of the parameter that the tile has, its columns, and runs of a row.
    start, stop : int
        First item, and the end of the last.
    run0, run1, sign0, sign1 : int
        Keys.
    first_run : int
        Run of the parameter that is the tile's first.
    """

    offset: int
    by_sample: int
    by_row: int
    first_row: int
    columns: int
    runs: int
    start: int
    stop: int
    run0: int
    run1: int
    sign0: int
    sign1: int
    first_run: int


def shares_of(
    place: TilePlace,
    keys: tuple[tuple[int, ...], tuple[int, ...]],
    batch: int,
    dim: int,
    first_run: int = 0,
) -> list[Share]:
    """Return the shares of a tile in one copy of the sketch."""
    runs = -(-place.columns // dim)
    items = place.rows * runs
    share = -(-items // share_count(batch, place.rows, place.columns, dim))
    own = tuple(signed(key) for one in keys for key in one[:2])
    numbers = (place.offset, place.by_sample, place.by_row, place.first_row, place.columns, runs)
    return [Share._make((*numbers, *part, *own, first_run)) for part in ranges(items, share)]


def add_sketches(out: Tensor, tiles: Tensor, shares: Tensor, scale: float) -> None:
    """Add the sketches of many tiles.

    Parameters
    ----------
    out : Tensor, shape (batch, dim), float32
        Changed in place.
    tiles : Tensor, float32
        Memory in which the tiles are.
    shares : Tensor, shape (all, 13), int32
        All shares of all tiles and copies.
    scale : float
        1/√s.
    """
    batch, dim = out.shape
    partial = torch.empty(len(shares), batch, dim, dtype=torch.float32, device=out.device)
    with torch.cuda.device_of(out):
        _sketch_tiles[(triton.cdiv(dim, FEATURES), triton.cdiv(batch, SAMPLES), len(shares))](
            tiles,
            shares,
            partial,
            batch,
            dim,
            SHARE=shares.shape[1],
            SAMPLES=SAMPLES,
            FEATURES=FEATURES,
            num_warps=1,
        )
    add_partial_sums(out, partial, scale)


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
    grid = triton.cdiv(dim, FEATURES), triton.cdiv(batch, SAMPLES)
    shares = share_count(batch, rows, rest, dim)
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
            SAMPLES=SAMPLES,
            FEATURES=FEATURES,
            num_warps=1,
        )
    add_partial_sums(out, partial, scale)

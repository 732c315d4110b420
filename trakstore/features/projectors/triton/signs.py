"""Dense random signs on a GPU: drawn in registers, multiplied on tensor cores, summed in float32.

Words of 32 signs are drawn for a tile of (words, entries), and a program takes four signs of each, so
that the hash, which costs more than a sign, is shared by four features. A gradient is split in two
bfloat16 numbers, high and low, which hold 16 of float32's 24 bits; their products with signs are exact,
so a feature is off by 2⁻¹⁷ of the entries' sizes at most.

A tensor core does not round the sums that it keeps, it cuts them: each step takes half a unit of the
last place away, toward zero, and over 100,000 entries that was 1.3e-4 of a feature. So it sums 4,096
entries at most, and those sums are added by ordinary additions, which round. Programs of other entries
write partial sums, which are added in one order: no atomics, so the bits are the same in every run.

Two products an entry leave half of a bfloat16 matmul's speed at most. What is beside them counts: for
64 words, 64 samples and 32 entries a multiprocessor of an H100 needs 512 cycles for products, and as
many to start the 505 instructions of each of 4 warps (595 before pairs of signs were made at once).
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from trakstore.features.projectors.triton.words import as_word, hash2, mix, signed

__all__ = ["add_signs"]

_ENTRIES = 32  # of a step
_CHAIN = 128  # steps that a tensor core sums
_WORDS, _SAMPLES = 64, 64  # at most, of a program: half of its registers hold their sums
_PAIRS = 1024  # drawn by a program
_PROGRAMS = 512  # that fill a large GPU twice
_STEPS = 32  # that a program should have


@triton.jit(do_not_specialize=("count", "first_row", "key0", "key1"))
def _draw_pairs(
    pairs, rows, count, rest, first_row, key0, key1, LISTED: tl.constexpr, N: tl.constexpr
):
    """The hash of (row, position) of each entry, which all features share."""
    e = tl.program_id(0) * N + tl.arange(0, N)
    row = e // rest
    r = tl.load(rows + row, mask=e < count, other=0) if LISTED else first_row + row
    pair = hash2(r, e - row * rest, key0, key1)
    tl.store(pairs + e, pair.to(tl.int32, bitcast=True), mask=e < count)


@triton.jit
def _add(total, halves, bit, high, low, WORDS: tl.constexpr, ENTRIES: tl.constexpr):
    """Add the products with one of each word's signs.

    ``halves (WORDS, ENTRIES / 2)`` hold the same 16 bits of two neighbours' words, so that one shift
    and one logical operation make two bfloat16 numbers of -1 or 1.
    """
    signs = ((halves << (15 - bit)) & 0x80008000) | 0x3F803F80
    first = (signs & 0xFFFF).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    second = (signs >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    sign = tl.reshape(tl.join(first, second), (WORDS, ENTRIES)).to(high.dtype)
    return tl.dot(sign, low, tl.dot(sign, high, total))


@triton.jit
def _store(partial, total, bit, word, words, b, batch, more):
    """Write sums, to which those are added that this program wrote before."""
    out = partial + (tl.program_id(2) * 32 + bit).to(tl.int64) * words * batch
    own = (word < words)[:, None] & (b < batch)
    at = word[:, None] * batch + b
    if more:
        total += tl.load(out + at, mask=own, other=0.0)
    tl.store(out + at, total, mask=own)


@triton.jit(do_not_specialize=("batch", "words", "steps", "key2"))
def _products(
    tile,
    pairs,
    partial,
    batch,
    count,
    words,
    steps,
    key2,
    WORDS: tl.constexpr,
    SAMPLES: tl.constexpr,
    ENTRIES: tl.constexpr,
    CHAIN: tl.constexpr,
    OPERAND: tl.constexpr,
):
    """Products of ``steps · ENTRIES`` entries with 4 signs of each word.

    ``tile (batch, count)``, ``pairs (count,)``, ``partial (shares, 32, words, batch)``.
    """
    bit = tl.program_id(0) % 8 * 4
    half = bit // 16 * 16
    word = tl.program_id(0) // 8 * WORDS + tl.arange(0, WORDS)
    b = (tl.program_id(1) * SAMPLES + tl.arange(0, SAMPLES))[None, :]
    column = tl.arange(0, ENTRIES)
    own = mix(as_word(word) ^ as_word(key2))
    same = pairs + (word * 0)[:, None]  # as a tile, whose threads then hold entries in fours
    first = tl.program_id(2) * steps * ENTRIES
    for chain in range(0, steps, CHAIN):
        total0 = tl.zeros([WORDS, SAMPLES], dtype=tl.float32)
        total1, total2, total3 = total0, total0, total0
        for step in range(chain, tl.minimum(chain + CHAIN, steps)):
            e = first + step * ENTRIES + column
            pair = tl.load(same + e[None, :], mask=(e < count)[None, :], other=0)
            drawn = mix(own[:, None] + as_word(pair))
            even, odd = tl.split(tl.reshape(drawn, (WORDS, ENTRIES // 2, 2)))
            halves = ((even >> half) & 0xFFFF) | ((odd >> half) << 16)
            g = tl.load(
                tile + b.to(tl.int64) * count + e[:, None],
                mask=(e < count)[:, None] & (b < batch),
                other=0.0,
            )
            # The upper half of a float32's bits, rounded, is a bfloat16; a cast there and back would
            # go through the chip's slow unit for casts.
            upper = (g.to(tl.uint32, bitcast=True) + 0x8000) & 0xFFFF0000
            rounded = upper.to(tl.float32, bitcast=True)
            high, low = rounded.to(OPERAND), (g - rounded).to(OPERAND)
            at = bit - half
            total0 = _add(total0, halves, at, high, low, WORDS, ENTRIES)
            total1 = _add(total1, halves, at + 1, high, low, WORDS, ENTRIES)
            total2 = _add(total2, halves, at + 2, high, low, WORDS, ENTRIES)
            total3 = _add(total3, halves, at + 3, high, low, WORDS, ENTRIES)
        more = chain > 0
        _store(partial, total0, bit, word, words, b, batch, more)
        _store(partial, total1, bit + 1, word, words, b, batch, more)
        _store(partial, total2, bit + 2, word, words, b, batch, more)
        _store(partial, total3, bit + 3, word, words, b, batch, more)


def add_signs(
    out: Tensor, tile: Tensor, key: tuple[int, ...], first_row: int = 0, rows: Tensor | None = None
) -> None:
    """Add the projection of a tile.

    Parameters
    ----------
    out : Tensor, shape (batch, dim), float32
        Changed in place.
    tile : Tensor, shape (batch, rows, rest), float32, contiguous
    key : tuple of int
        Keys of the signs.
    first_row : int
        Row of the parameter that is the tile's first,
    rows : Tensor, shape (rows,), int32, contiguous, optional
        or rows of the parameter that the tile has.
    """
    batch, count, dim = len(tile), tile[0].numel(), out.shape[1]
    words = -(-dim // 32)
    size, samples = _power(words, _WORDS), _power(batch, _SAMPLES)
    grid = triton.cdiv(words, size) * 8, triton.cdiv(batch, samples)
    shares = _shares(grid[0] * grid[1], count)
    steps = triton.cdiv(count, shares * _ENTRIES)
    pairs = torch.empty(count, dtype=torch.int32, device=out.device)
    partial = torch.empty(shares, 32, words, batch, dtype=torch.float32, device=out.device)
    key0, key1, key2 = map(signed, key)
    with torch.cuda.device_of(out):
        _draw_pairs[(triton.cdiv(count, _PAIRS),)](
            pairs,
            pairs if rows is None else rows,
            count,
            tile.shape[2],
            first_row,
            key0,
            key1,
            LISTED=rows is not None,
            N=_PAIRS,
        )
        _products[(*grid, shares)](
            tile,
            pairs,
            partial,
            batch,
            count,
            words,
            steps,
            key2,
            WORDS=size,
            SAMPLES=samples,
            ENTRIES=_ENTRIES,
            CHAIN=_CHAIN,
            OPERAND=tl.bfloat16
            if out.is_cuda
            else tl.float32,  # Triton's interpreter has no bfloat16
            num_warps=size // 16,
        )
    columns = partial.sum(0).permute(2, 1, 0).reshape(batch, words * 32)
    out.add_(columns[:, :dim], alpha=1 / math.sqrt(dim))


def _power(count: int, most: int) -> int:
    """Return the next power of two, from 16, the least that a tensor core takes, to the most."""
    return min(most, max(16, 1 << (count - 1).bit_length()))


def _shares(programs: int, count: int) -> int:
    """Return the number of parts in which entries are added."""
    # It depends on shapes alone: another number would give other last bits.
    return max(1, min(_PROGRAMS // programs, count // (_STEPS * _ENTRIES)))

"""Codes of rows, four bits a column, and what they say of products with the rows.

Gradients are large in a few directions and small in all others, which a kernel's inverse raises again:
numbers that are rounded alike would lose what counts. So a row's share of the few directions is kept
apart, in 16 bits. What is left of it is mixed by signs and butterflies, after which its columns are
about as large as one another, and rounded to 16 levels, which leaves 1.2% of its squared norm (Max:
"Quantizing for minimum distortion", IRE Transactions on Information Theory 6(1), 1960). No kernel is in
the codes: they serve all kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numba
import numpy as np
from numpy.typing import NDArray

from trakstore.errors import TrakStoreError
from trakstore.machine_code import compiled, compiled_for_all
from trakstore.passes.half_precision import widened
from trakstore.passes.sent import Sent
from trakstore.scores.level_products import level_products
from trakstore.storage.tables.index_documents import code_bytes, direction_count

F32 = NDArray[np.float32]
_STEP = 0.3352  # between levels, by the standard deviation of a row's columns
_MOST_STEPS = 2**15 - 1  # that a share has
_PARTS = 64  # of a row, which are mixed with one another
_ROUNDS = 3  # of the power method, from random directions on
_TINY = float(np.finfo(np.float32).tiny)
_PIECE = 128  # rows that are coded at once: they stay in a cache


class Codes(NamedTuple):
    """Codes of n rows.

    Attributes
    ----------
    levels : ndarray of uint8, shape (n, bytes)
        Levels 0 to 15 of two columns a byte: of column j in the lower half of byte j, of column
        ``bytes + j`` in the upper one. Level v stands for v - 7.5 steps.
    shares : ndarray of int16, shape (n, r)
        Products with the directions that are apart, in steps.
    steps : ndarray of float32, shape (n,)
        0 for a row of zeros.
    """

    levels: NDArray[np.uint8]
    shares: NDArray[np.int16]
    steps: F32

    def rows(self, low: int, high: int) -> Codes:
        """Return those of some rows."""
        return Codes(self.levels[low:high], self.shares[low:high], self.steps[low:high])


def need_compiler() -> None:
    """Raise a :class:`TrakStoreError` where numba is told not to compile."""
    chosen: Any = numba.core.config
    if chosen.DISABLE_JIT:
        raise TrakStoreError(
            "an index is built and asked by loops that numba compiles: unset NUMBA_DISABLE_JIT"
        )


@compiled
def _mix(rows: F32, signs: F32, parts: int) -> None:  # pragma: no cover
    """Turn rows, in place, by signs and by butterflies of equal parts: an orthogonal map."""
    dim = rows.shape[1]
    span = dim // parts * parts
    for i in range(rows.shape[0]):
        _mix_parts(rows[i, :span], signs[:span], parts)
        # The columns behind the equal parts are in those of a second round, from the end. Without signs
        # of its own it would undo the first.
        if span < dim:
            _mix_parts(rows[i, dim - span :], signs[dim - span :], parts)


# A function of its own, for which the compiler finds vector instructions.
@compiled
def _mix_parts(row: F32, signs: F32, parts: int) -> None:  # pragma: no cover
    span, half, norm = len(row), len(row) // parts, np.float32(1 / np.sqrt(parts))
    for j in range(span):
        row[j] *= norm * signs[j]
    while half < span:
        for low in range(0, span, 2 * half):
            one, other = row[low : low + half], row[low + half : low + 2 * half]
            for j in range(half):
                a, b = one[j], other[j]
                one[j], other[j] = a + b, a - b
        half *= 2


@compiled_for_all
def _round(
    levels: NDArray[np.uint8], shares: NDArray[np.int16], steps: F32, rows: F32, apart: F32
) -> None:  # pragma: no cover
    """Find the step of each row, NaN for one that is not finite, and round its columns and shares."""
    for i in range(rows.shape[0]):
        steps[i] = _step_of(rows[i], apart[i])
        inverse = np.float32(1) / steps[i] if steps[i] > 0 else np.float32(0)
        for j in range(apart.shape[1]):
            shares[i, j] = np.int16(np.rint(apart[i, j] * inverse))
        _round_row(levels[i], rows[i], inverse)


@compiled_for_all
def _step_of(row: F32, apart: F32) -> np.float32:  # pragma: no cover
    squares, most = np.float64(0), np.float32(0)
    for j in range(len(row)):
        squares += np.float64(row[j]) ** 2
    for j in range(len(apart)):
        most = max(most, abs(apart[j]))
    if not np.isfinite(squares):
        return np.float32(np.nan)
    # Of a row that is all in the directions apart, the shares must fit.
    step = max(np.float32(_STEP * np.sqrt(squares / len(row))), most / np.float32(_MOST_STEPS))
    # Steps of denormal numbers have no inverse.
    return step if step > np.float32(1e-37) else np.float32(0)


@compiled_for_all
def _round_row(
    levels: NDArray[np.uint8], row: F32, inverse: np.float32
) -> None:  # pragma: no cover
    half = len(levels)
    low, high = row[:half], row[half:]
    # Level v is of what lies between v - 8 and v - 7 steps.
    for j in range(len(low)):
        level = min(max(low[j] * inverse + np.float32(8), np.float32(0)), np.float32(15))
        levels[j] = np.uint8(np.int32(level))
    for j in range(len(high)):
        level = min(max(high[j] * inverse + np.float32(8), np.float32(0)), np.float32(15))
        levels[j] |= np.uint8(np.int32(level) << np.int32(4))


@compiled
def _sum_up(
    out: F32, codes: Any, products: NDArray[np.int32], target: Any
) -> None:  # pragma: no cover
    """Compute estimates from the products of levels."""
    _, shares, steps = codes
    apart, _, unit, middle = target
    for i in range(out.shape[0]):
        total = unit * (np.float32(products[i]) - middle)
        for j in range(shares.shape[1]):
            total += np.float32(shares[i, j]) * apart[j]
        out[i] = steps[i] * total


class CodedTarget(NamedTuple):
    """A left factor as products with codes need it.

    Attributes
    ----------
    apart : ndarray of float32, shape (r,)
        Its products with the directions that are apart.
    numbers : ndarray of int8, shape (2 * bytes,)
        What is left of it, mixed as rows are.
    unit : float32
        What 1 of these stands for.
    middle : float32
        Product of the numbers with the level 7.5, which stands for 0.
    """

    apart: F32
    numbers: NDArray[np.int8]
    unit: np.float32
    middle: np.float32


@dataclass(frozen=True, eq=False)
class Coder(Sent):
    """The map from rows of one epoch to codes.

    Attributes
    ----------
    directions : ndarray of float32, shape (r, k)
        Orthonormal rows.
    signs : ndarray of float32, shape (k,)
    """

    directions: F32
    signs: F32

    @classmethod
    def of(cls, directions: F32, seed: int) -> Self:
        """Make it from its directions, and the seed of its signs."""
        dim = directions.shape[1]
        words = np.random.PCG64(seed).random_raw(-(-dim // 64))
        bits = np.unpackbits(words.astype("<u8").view(np.uint8), bitorder="little")[:dim]
        return cls(np.ascontiguousarray(directions), 1 - 2 * bits.astype(np.float32))

    @staticmethod
    def directions_of(rows: F32, seed: int) -> F32:
        """Find the directions, (r, k), in which some rows (n, k) are largest."""
        dim = rows.shape[1]
        rng = np.random.default_rng(seed)
        directions = rng.standard_normal((dim, direction_count(dim)), dtype=np.float32)
        # Squares of tiny or huge rows would leave the range of float32.
        rows = rows / np.float32(max(float(np.abs(rows).max(initial=0)), _TINY))
        for _ in range(_ROUNDS):
            directions = np.linalg.qr(rows.T @ (rows @ directions))[0]
        return np.ascontiguousarray(directions.T)

    def codes(self, rows: NDArray[Any]) -> Codes:
        """Return the codes of rows (n, k) of any floats; one that is not finite counts as zeros."""
        count, (r, dim) = len(rows), self.directions.shape
        levels = np.zeros((count, code_bytes(dim)), np.uint8)
        codes = Codes(levels, np.empty((count, r), np.int16), np.empty(count, np.float32))
        piece, rest = np.empty((2, min(_PIECE, count), dim), np.float32)
        for low in range(0, count, _PIECE):
            some = rows[low : low + _PIECE]
            own, made = widened(some, piece[: len(some)]), codes.rows(low, low + _PIECE)
            self._code(made, own, rest[: len(some)])
            bad = ~np.isfinite(made.steps)
            if bad.any():
                own[bad] = 0
                self._code(made, own, rest[: len(some)])
        return codes

    def _code(self, codes: Codes, rows: F32, rest: F32) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            apart = rows @ self.directions.T
            np.matmul(apart, self.directions, out=rest)
            np.subtract(rows, rest, out=rest)
        _mix(rest, self.signs, _parts(rest.shape[1]))
        _round(*codes, rest, apart)

    def target(self, left: F32) -> CodedTarget:
        """Return a left factor (k,) for :func:`estimates`."""
        apart = self.directions @ left
        rest = np.subtract(left, apart @ self.directions, dtype=np.float32)
        _mix(rest[None], self.signs, _parts(len(rest)))
        unit = max(float(np.abs(rest).max()) / 127, _TINY)
        numbers = np.zeros(2 * code_bytes(len(rest)), np.int8)
        numbers[: len(rest)] = np.rint(rest / np.float32(unit))
        middle = 7.5 * int(numbers.sum(dtype=np.int64))
        return CodedTarget(apart, numbers, np.float32(unit), np.float32(middle))


def estimates(out: F32, codes: Codes, targets: Sequence[CodedTarget]) -> None:
    """Write estimates of the products of m targets with n coded rows, shape (m, n)."""
    products = np.empty(out.shape, np.int32)
    level_products(products, codes.levels, np.stack([one.numbers for one in targets]))
    for own, product, target in zip(out, products, targets, strict=True):
        _sum_up(own, codes, product, target)


def _parts(dim: int) -> int:
    """Return the parts of a row that are mixed: a power of two."""
    return min(_PARTS, 1 << (dim.bit_length() - 1))

"""Products of a few targets with stored float16 rows, whose checksums are made on the way.

A row is read from memory once: a checksum apart, a copy of the file and a product would each have it
come from there again, which takes longer than all that is computed.
"""

from __future__ import annotations

from functools import cache
from typing import Any, TypeGuard

import numba
import numpy as np
from numpy.typing import NDArray

from trakstore.machine_code import compiled_for_all
from trakstore.passes.half_precision import (
    F32,
    four_targets,
    has_instructions,
    one_target,
    wide,
)
from trakstore.passes.rows import Rows
from trakstore.storage.backends.chunks import TAIL
from trakstore.storage.backends.mapped import mapped, pointer, unmapped
from trakstore.storage.backends.row_registers import (
    U64,
    WORD,
    joined,
    over_zeros,
    sum_four,
    sums_words,
)
from trakstore.storage.mapped_chunks import chunk_files, is_mappable
from trakstore.storage.stored import StoredColumn

_numba: Any = numba
_BYTES = 2  # of a number


def checked_products(lefts: F32, rows: Rows, start: int, stop: int, out: F32) -> bool:
    """Compute ``lefts @ rows[start:stop].T`` from the files of whole chunks where they lie in memory.

    Parameters
    ----------
    lefts : ndarray of float32, shape (m, k)
    rows : Rows of float16, shape (n, k)
    start, stop : int
    out : ndarray of float32, shape (m, stop - start)

    Returns
    -------
    bool
        False where the rows have to be read, and ``out`` may hold anything: since they are not stored
        so, do not begin with a chunk, or a chunk does not have its checksum.
    """
    if not are_files(rows) or start % rows.chunk_rows:
        return False
    files = chunk_files(rows, start // rows.chunk_rows, -(-stop // rows.chunk_rows))
    step, over = rows.chunk_rows, over_zeros(_BYTES * rows.shape[1])
    return files is not None and bool(_multiply_files(out, lefts, *files, step, over))


def are_files(rows: Rows) -> TypeGuard[StoredColumn]:
    """Tell whether rows are float16 in files that :func:`checked_products` can look at."""
    if not isinstance(rows, StoredColumn) or rows.dtype != np.float16 or not _has_instructions():
        return False
    return rows.shape[1] * _BYTES % WORD == 0 and is_mappable(rows)


@cache
def _has_instructions() -> bool:
    return has_instructions() and sums_words()


_F32 = np.float32
_COLUMNS = 128


@compiled_for_all
def _multiply(
    out: F32, sums: U64, lefts: F32, rows: NDArray[np.uint16], words: U64
) -> None:  # pragma: no cover
    """Multiply targets with rows, four at a time, and compute the registers of each row from 0 on.

    There may be more rows than places in ``out``: these are summed alone.
    """
    count, targets = len(words), len(lefts)
    for first in range(0, count, 4):
        # Of the last four some may have been done already.
        i = min(first, max(0, count - 4))
        sum_four(sums, words, i, 0, words.shape[1])
        four = rows[i : min(i + 4, out.shape[1])]
        for at in range(0, targets // 4 * 4, 4):
            four_targets(out[at : at + 4, i : i + 4], lefts[at : at + 4], four)
        for at in range(targets // 4 * 4, targets):
            one_target(out[at, i : i + 4], lefts[at], four)


# Memory is waited for while words are summed, and hardly while numbers are multiplied: so the two take
# turns, as often as the sums across a vector at the end of each turn allow.
@compiled_for_all
def _multiply_one(
    out: F32, sums: U64, left: F32, rows: NDArray[np.uint16], words: U64
) -> None:  # pragma: no cover
    """Do the same for one target, some columns at a time."""
    count, columns = rows.shape
    last = len(out) - 1
    for first in range(0, count, 4):
        i = min(first, max(0, count - 4))
        i1, i2, i3 = min(i + 1, count - 1), min(i + 2, count - 1), min(i + 3, count - 1)
        s, t, u, v = _F32(0), _F32(0), _F32(0), _F32(0)
        for low in range(0, columns, _COLUMNS):
            high = min(low + _COLUMNS, columns)
            part, a, b, c, d = left[low:high], _F32(0), _F32(0), _F32(0), _F32(0)
            row, row1 = rows[i, low:high], rows[i1, low:high]
            row2, row3 = rows[i2, low:high], rows[i3, low:high]
            for j in range(len(part)):
                value = part[j]
                a += value * wide(row[j])
                b += value * wide(row1[j])
                c += value * wide(row2[j])
                d += value * wide(row3[j])
            s, t, u, v = s + a, t + b, u + c, v + d
            sum_four(sums, words, i, low // 4, high // 4)
        for at, value in ((i, s), (i1, t), (i2, u), (i3, v)):
            if at <= last:
                out[at] = value


@compiled_for_all
def _multiply_files(
    out: F32,
    lefts: F32,
    folders: NDArray[np.uint8],
    name: NDArray[np.uint8],
    committed: NDArray[np.int64],
    step: int,
    over: U64,
) -> bool:  # pragma: no cover
    """Multiply targets with rows of chunks; tell whether all have their checksums."""
    columns, is_right = lefts.shape[1], True
    size, sums = _BYTES * step * columns, np.empty(step, np.uint64)
    for chunk in range(len(folders)):
        place, file = mapped(folders[chunk], name, size + TAIL)
        if place == 0:
            return False
        rows = _numba.carray(pointer(place), (step, columns), np.uint16)
        words = _numba.carray(pointer(place), (step, _BYTES * columns // WORD), np.uint64)
        part = out[:, chunk * step : (chunk + 1) * step]
        if len(lefts) == 1:
            _multiply_one(part[0], sums, lefts[0], rows, words)
        else:
            _multiply(part, sums, lefts, rows, words)
        checksum = np.int64(joined(sums, over))
        is_right = checksum == _stored(place + size) and committed[chunk] in (-1, checksum)
        unmapped(place, size + TAIL, file)
        if not is_right:
            break
    return is_right


@compiled_for_all
def _stored(place: int) -> np.int64:  # pragma: no cover
    """Return the checksum that is stored at an address."""
    value = np.int64(0)
    for byte in _numba.carray(pointer(place), TAIL, np.uint8)[::-1]:
        value = value << np.int64(8) | np.int64(byte)
    return value

"""Single rows of a stored column, read from their positions in the chunks' files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from trakstore.errors import DamagedError, LocationError
from trakstore.storage import layout
from trakstore.storage.backends.local import DurableLocalStore
from trakstore.storage.backends.location import VALUE_BYTES
from trakstore.storage.stored import StoredColumn

# Reads that wait for the disk at once: one by one, thousands of rows would take seconds.
_THREADS = 8
# A run of rows of one chunk: the chunk's number, and the positions of its rows among the wanted ones.
_Run: TypeAlias = tuple[int, NDArray[np.int64]]


def row_checksums(rows: NDArray[Any]) -> NDArray[np.uint32]:
    """Compute the CRC-32C of the bytes of each row (n, k), as they are stored, shape (n,)."""
    # Imported here, since numba takes half a second to import.
    from trakstore.storage.backends.row_registers import WORD, each_joined, over_zeros, sums_words

    stored = np.ascontiguousarray(rows, rows.dtype.newbyteorder("<"))
    data, out = stored.view(np.uint8), np.empty(len(rows), np.uint32)
    if data.shape[1] % WORD == 0 and sums_words():
        each_joined(out, data.view(np.uint64), over_zeros(data.shape[1]))
    else:
        out[:] = [crc32c(row.data) for row in data]
    return out


def read_single_rows(
    column: StoredColumn, positions: NDArray[np.int64], checksums: NDArray[np.uint32]
) -> NDArray[Any]:
    """Read the rows at ascending positions, and compare each with its checksum.

    On a local disk only the rows themselves are read, unless their chunks are compressed; elsewhere
    whole chunks are. Integers of 8 bits are returned as stored, without their scale.

    Parameters
    ----------
    column : StoredColumn, shape (n, k)
    positions : ndarray of int64, shape (c,)
    checksums : ndarray of uint32, shape (c,)
        Checksums of the rows, from :func:`row_checksums`.

    Raises
    ------
    DamagedError
        When a row does not have its checksum, or its chunk is missing or too short.
    LocationError
        When the place cannot be read.
    """
    stored, step = replace(column, scale=None), column.chunk_rows
    out = np.empty((len(positions), *column.shape[1:]), dtype=stored.dtype)
    cuts = np.flatnonzero(np.diff(positions // step)) + 1
    groups = np.split(np.arange(len(positions)), cuts)
    runs = [(int(positions[at[0]] // step), at) for at in groups if len(at)]
    by_offset = isinstance(column.location.store, DurableLocalStore) and not column.form.compressed
    read = _read_offsets if by_offset else _read_chunks
    with ThreadPoolExecutor(_THREADS) as pool:
        shares = [runs[first::_THREADS] for first in range(_THREADS)]
        list(pool.map(lambda share: read(stored, positions, share, out), shares))
    bad = np.flatnonzero(row_checksums(out) != checksums)
    if len(bad):
        raise DamagedError(
            f"{column.location}: row {positions[bad[0]]} of {column.path} is not the one that was "
            f"indexed; look with `trakstore verify`, and if it finds nothing, build the index again "
            f"(run `trakstore index`, or ts.build_index)"
        )
    return out


def _read_chunks(
    column: StoredColumn, positions: NDArray[np.int64], runs: Sequence[_Run], out: NDArray[Any]
) -> None:
    for _, at in runs:
        first, last = int(positions[at[0]]), int(positions[at[-1]])
        out[at] = column.read(first, last + 1)[positions[at] - first]


def _read_offsets(
    column: StoredColumn, positions: NDArray[np.int64], runs: Sequence[_Run], out: NDArray[Any]
) -> None:
    step, width = column.form.shape
    item = column.form.values.itemsize
    store: Any = column.location.store
    for down, at in runs:
        inside = (positions[at] - down * step).tolist()
        for across, left in enumerate(range(0, column.shape[1], width)):
            count = min(width, column.shape[1] - left) * item
            key = layout.chunk_key(column.path, (down, across))
            try:
                with store.reading(key, VALUE_BYTES) as file:
                    if file is None:
                        raise DamagedError(f"{column.location}: chunk {key} is missing")
                    handle = file.fileno()
                    pieces = [os.pread(handle, count, row * width * item) for row in inside]
            except DamagedError:
                raise
            except OSError as error:
                raise LocationError(f"{column.location}: {key} cannot be read: {error}") from error
            if min(map(len, pieces)) < count:
                raise DamagedError(f"{column.location}: chunk {key} is too short")
            values = np.frombuffer(b"".join(pieces), column.form.values.newbyteorder("<"))
            out[at, left : left + width] = values.reshape(len(inside), -1)

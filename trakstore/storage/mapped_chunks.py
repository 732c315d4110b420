"""Chunks of a local column, found where the system keeps their files in memory."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import DamagedError, LocationError
from trakstore.storage import layout
from trakstore.storage.backends.local import DurableLocalStore
from trakstore.storage.backends.mapped import Text, maps_files
from trakstore.storage.stored import StoredColumn


class ChunkFiles(NamedTuple):
    """Files of some chunks.

    Attributes
    ----------
    folders : ndarray of uint8, shape (n, bytes)
        Paths of their folders.
    name : ndarray of uint8
        Name of the file in each.
    committed : ndarray of int64, shape (n,)
        CRC-32C that each has by its block's marker; -1 where no marker counts it.
    """

    folders: NDArray[np.uint8]
    name: Text
    committed: NDArray[np.int64]


def is_mappable(column: StoredColumn) -> bool:
    """Tell whether the files of a column are its rows as they are in memory, and nothing is missing."""
    return (
        maps_files
        and isinstance(column.location.store, DurableLocalStore)
        and column.ndim == 2
        and column.scale is None
        and not (column.missing or column.form.compressed)
        and column.form.shape[1:] == column.shape[1:]
    )


def chunk_files(column: StoredColumn, first: int, stop: int) -> ChunkFiles | None:
    """Return the files of the chunks ``first`` to ``stop`` of a column that :func:`is_mappable`.

    None where something is not as usual, such as a link on the way: :meth:`StoredColumn.read` knows
    what to say.
    """
    store: Any = column.location.store
    try:
        # The folders above all chunks are looked at here, that of each where it is opened.
        above = store.place(layout.chunk_key(column.path, (first, 0))).parent.parent
        tails = [column.committed_tail((at, 0)) for at in range(first, stop)]
    except (DamagedError, LocationError, OSError, ValueError):
        return None
    committed = [-1 if one is None else int.from_bytes(one, "little") for one in tails]
    folders = [os.fsencode(above / str(at)) for at in range(first, stop)]
    return ChunkFiles(_texts(folders), _texts([b"0"])[0], np.array(committed))


def _texts(every: list[bytes]) -> NDArray[np.uint8]:
    longest = max(map(len, every))
    return np.array(every, f"S{longest + 1}").view(np.uint8).reshape(len(every), -1)

"""Chunks of a local column, looked at where the system keeps their files in memory."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from trakstore.errors import DamagedError, LocationError
from trakstore.storage import layout
from trakstore.storage.backends.chunks import TAIL
from trakstore.storage.backends.local import DurableLocalStore
from trakstore.storage.backends.mapped import mapped
from trakstore.storage.stored import StoredColumn


def is_mappable(column: StoredColumn) -> bool:
    """Tell whether the files of a column are its rows as they are in memory, and nothing is missing."""
    return (
        isinstance(column.location.store, DurableLocalStore)
        and column.scale is None
        and not (column.missing or column.form.compressed)
        and column.form.shape[1:] == column.shape[1:]
    )


def mapped_chunk(column: StoredColumn, down: int) -> tuple[NDArray[Any], int] | None:
    """Return the values of a chunk that no checksum was made of yet, and the one that is right.

    Parameters
    ----------
    column : StoredColumn
        One that :func:`is_mappable`.
    down : int
        Number of the chunk.

    Returns
    -------
    tuple of (ndarray of the chunk's shape, int), or None
        The CRC-32C of the values has to be compared with the second. None where something is not as
        usual, such as a file that is not there: :meth:`StoredColumn.read` knows what to do or to say.
    """
    store: Any = column.location.store
    key = layout.chunk_key(column.path, (down, *[0] * (column.ndim - 1)))
    try:
        with store.reading(key, column.form.most) as file:
            content = None if file is None else mapped(file.fileno(), column.form.most)
        committed = column.committed_tail((down, *[0] * (column.ndim - 1)))
    except (DamagedError, LocationError, OSError, ValueError):
        return None
    if content is None:
        return None
    tail = content[-TAIL:].tobytes()
    if committed is not None and committed != tail:
        return None
    return column.form.decode(key, content), int.from_bytes(tail, "little")

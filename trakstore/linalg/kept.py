"""Zarr arrays of results: how they are made and opened."""

from __future__ import annotations

from typing import Any

import zarr
from zarr.codecs import Crc32cCodec
from zarr.storage import LocalStore

from trakstore.storage.locations import DurableLocalStore, Location

__all__ = ["create_array", "open_array"]

_WRITE_ALL: Any = {"write_empty_chunks": True}  # else a chunk of zeros would look unwritten


def create_array(
    location: Location,
    path: str,
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    dtype: Any,
    dims: tuple[str, ...],
    attributes: dict[str, Any] | None = None,
) -> None:
    """An empty array with checksums and named dimensions; replaces what is there."""
    zarr.create_array(
        location.store,
        name=path,
        shape=shape,
        chunks=chunks,
        dtype=dtype,
        dimension_names=dims,
        compressors=[Crc32cCodec()],
        filters=None,
        attributes=attributes or {},
        overwrite=True,
    )


def open_array(
    location: Location, path: str, mode: Any = "r", *, flushed: bool = True
) -> zarr.Array[Any]:
    """An array that :func:`create_array` made.

    Chunks written with ``flushed=False`` are left to the system to flush: three times as fast, and
    after a power loss some may be empty.
    """
    store = location.store
    if not flushed and isinstance(store, DurableLocalStore):
        store = LocalStore(store.root)
    return zarr.open_array(store, path=path, mode=mode, zarr_format=3, config=_WRITE_ALL)

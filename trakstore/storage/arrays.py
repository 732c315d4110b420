"""Stored columns: their zarr documents and their bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import MemoryStore

from trakstore.errors import DamagedError
from trakstore.spec import SplitSpec
from trakstore.storage import layout

__all__ = [
    "array_document",
    "array_documents",
    "block_keys",
    "column_dimensions",
    "column_shape",
    "encode",
    "fill_value",
    "marker_entries",
    "mask_document",
    "skipped_document",
]

_WRITE_ALL: Any = {"write_empty_chunks": True}  # else a block of fill values would look unwritten


def fill_value(dtype: str) -> Any:
    """What stands where nothing was written: NaN, -1 (0 where unsigned), False or ``""``."""
    if dtype == "str":
        return ""
    return {"f": float("nan"), "i": -1, "u": 0, "b": False}[np.dtype(dtype).kind]


def array_document(
    dtype: str,
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    dimensions: tuple[str, ...],
    *,
    separator: str = "/",
    compressed: bool = False,
) -> bytes:
    """The metadata document of an array: the same bytes whatever the version of zarr."""
    fill = fill_value(dtype)
    document = {
        "shape": shape,
        "data_type": "string" if dtype == "str" else dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunks}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": separator}},
        "fill_value": "NaN" if fill != fill else fill,
        "codecs": _codecs(dtype, compressed),
        "attributes": {},
        "dimension_names": dimensions,
        "zarr_format": 3,
        "node_type": "array",
        "storage_transformers": [],
    }
    return json.dumps(document, indent=2).encode()


def _codecs(dtype: str, compressed: bool) -> list[dict[str, Any]]:
    first: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}
    if dtype == "str":
        first = {"name": "vlen-utf8", "configuration": {}}
    elif dtype == "bool":
        first = {"name": "bytes"}
    zstd = {"name": "zstd", "configuration": {"level": 1, "checksum": False}}
    return [first, *([zstd] if compressed else []), {"name": "crc32c"}]


def column_dimensions(name: str, ndim: int) -> tuple[str, ...]:
    """Names of a column's dimensions: each kind of feature has its own second one."""
    return ("sample", "feature" if name == layout.FEATURES else name)[:ndim]


def column_shape(split: SplitSpec, name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape of a column, and of its chunks."""
    if name == layout.FEATURES:
        return (split.rows, split.dim), (split.chunk_rows, split.chunk_columns)
    if name in (widths := dict(split.widths)):
        return (split.rows, widths[name]), (split.chunk_rows, widths[name])
    return (split.rows,), (split.block_rows,)


def array_documents(split: SplitSpec) -> dict[str, bytes]:
    """The metadata documents of all arrays of a split, by name: a pure function of its spec."""
    documents = {}
    for name, dtype in split.columns:
        shape, chunks = column_shape(split, name)
        compressed = name == layout.FEATURES and split.keep_bits is not None
        documents[name] = array_document(
            dtype, shape, chunks, column_dimensions(name, len(shape)), compressed=compressed
        )
    entries = marker_entries(split)
    documents[layout.WRITTEN] = array_document(
        "uint32", (split.blocks, entries), (1, entries), ("block", "entry"), separator="."
    )
    return documents


def mask_document(split: SplitSpec) -> bytes:
    """The document of the ``masked`` column of format 1; a chunk that is not there masks nothing."""
    return array_document("bool", (split.rows,), (split.block_rows,), ("sample",))


def skipped_document(split: SplitSpec) -> bytes:
    """The metadata document of the ``skipped`` column, whose chunks are those of bad blocks."""
    return array_document("uint8", (split.rows,), (split.block_rows,), ("sample",))


def block_keys(split: SplitSpec, block: int) -> list[str]:
    """The chunk keys of a block, relative to the split, in the order of its marker's entries.

    First one chunk of each row column, by name, then the feature chunks, row by row, then those of
    activations, layer by layer, by name.
    """
    start, stop = split.block_range(block)
    down = range(start // split.chunk_rows, -(-stop // split.chunk_rows))
    across = range(-(-split.dim // split.chunk_columns))
    return [
        *(f"{name}/c/{block}" for name in split.row_columns),
        *(f"{layout.FEATURES}/c/{i}/{j}" for i in down for j in across),
        *(f"{name}/c/{i}/0" for name, _ in sorted(split.widths) for i in down),
    ]


def marker_entries(split: SplitSpec) -> int:
    """Entries of a marker: rows, nonce, and the checksums of as many chunks as a block can have."""
    across = -(-split.dim // split.chunk_columns) + len(split.widths)
    return 2 + len(split.row_columns) + split.block_rows // split.chunk_rows * across


def encode(
    documents: Mapping[str, bytes], rows: tuple[int, int], values: Mapping[str, NDArray[Any]]
) -> dict[str, bytes]:
    """The chunks, by key relative to the split, that hold ``values`` at the given rows."""
    staged = MemoryStore()
    buffer = default_buffer_prototype().buffer
    for name, array in values.items():
        sync(staged.set(layout.document_key(name), buffer.from_bytes(documents[name])))
        column = zarr.open_array(staged, path=name, mode="r+", zarr_format=3)
        column.with_config(_WRITE_ALL)[rows[0] : rows[1]] = array
    return {key: _read_key(staged, key) for key in _keys(staged) if not key.endswith("zarr.json")}


def _keys(store: MemoryStore) -> list[str]:
    async def listing() -> list[str]:
        return [key async for key in store.list()]

    return sorted(sync(listing()))


def _read_key(store: MemoryStore, key: str) -> bytes:
    value = sync(store.get(key, default_buffer_prototype()))
    if value is None:
        raise DamagedError(f"a staged chunk {key} was not kept; this is a fault of trakstore")
    return value.to_bytes()

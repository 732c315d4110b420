"""Documents and chunks of the arrays of a split, all of which follow from its spec.

Every writer computes the same bytes, so that it does not matter who writes a document first, and a
damaged one can be written again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from trakstore.spec import SplitSpec
from trakstore.storage import layout
from trakstore.storage.backends.chunks import ChunkForm, cut, fill_value, grid


def array_document(
    form: ChunkForm, shape: tuple[int, ...], dimensions: tuple[str, ...], *, separator: str = "/"
) -> bytes:
    """Return the metadata document of an array: the same bytes whatever the version of zarr."""
    fill = fill_value(form.dtype)
    document = {
        "shape": shape,
        "data_type": "string" if form.dtype == "str" else form.dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": form.shape}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": separator}},
        "fill_value": "NaN" if fill != fill else fill,
        "codecs": _codecs(form),
        "attributes": {},
        "dimension_names": dimensions,
        "zarr_format": 3,
        "node_type": "array",
        "storage_transformers": [],
    }
    return json.dumps(document, indent=2).encode()


def _codecs(form: ChunkForm) -> list[dict[str, Any]]:
    first: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}
    if form.dtype == "str":
        first = {"name": "vlen-utf8", "configuration": {}}
    elif form.dtype == "bool":
        first = {"name": "bytes"}
    zstd = {"name": "zstd", "configuration": {"level": 1, "checksum": False}}
    return [first, *([zstd] if form.compressed else []), {"name": "crc32c"}]


def column_dimensions(name: str, ndim: int) -> tuple[str, ...]:
    """Return the names of a column's dimensions: each kind of feature has its own second one."""
    return ("sample", "feature" if name == layout.FEATURES else name)[:ndim]


def column_shape(split: SplitSpec, name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shape of a column, and of its chunks."""
    if name == layout.FEATURES:
        return (split.rows, split.dim), (split.chunk_rows, split.chunk_columns)
    if name in (widths := dict(split.widths)):
        return (split.rows, widths[name]), (split.chunk_rows, widths[name])
    return (split.rows,), (split.block_rows,)


def column_form(split: SplitSpec, name: str) -> ChunkForm:
    """Return the form of a column's chunks; for one that ``columns`` does not name, one byte a row."""
    compressed = name == layout.FEATURES and split.keep_bits is not None
    dtype = dict(split.columns).get(name, "bool" if name == layout.MASKED else "uint8")
    return ChunkForm(column_shape(split, name)[1], dtype, compressed)


def column_grid(split: SplitSpec, name: str) -> tuple[int, ...]:
    """Return the number of a column's chunks along each of its dimensions."""
    return grid(*column_shape(split, name))


def array_documents(split: SplitSpec) -> dict[str, bytes]:
    """Return the metadata documents of all arrays of a split, by name: a pure function of its spec."""
    documents = {}
    for name in dict(split.columns):
        shape, form = column_shape(split, name)[0], column_form(split, name)
        documents[name] = array_document(form, shape, column_dimensions(name, len(shape)))
    # Markers are files of one folder, so that one listing tells which blocks are committed.
    entries = marker_entries(split)
    documents[layout.WRITTEN] = array_document(
        ChunkForm((1, entries), "uint32"),
        (split.blocks, entries),
        ("block", "entry"),
        separator=layout.MARKER_SEPARATOR,
    )
    return documents


def row_document(split: SplitSpec, name: str) -> bytes:
    """Return the document of ``masked`` (of format 1) or ``skipped``.

    Both have chunks only for blocks with such rows.
    """
    return array_document(column_form(split, name), (split.rows,), ("sample",))


def block_keys(split: SplitSpec, block: int) -> list[str]:
    """Return the chunk keys of a block, relative to the split, in the order of its marker's entries.

    The order is: one chunk of each row column, by name; the feature chunks, row by row; the chunks of
    activations, by layer name.
    """
    start, stop = split.block_range(block)
    down = range(start // split.chunk_rows, -(-stop // split.chunk_rows))
    across = range(-(-split.dim // split.chunk_columns))
    key = layout.chunk_key
    return [
        *(key(name, (block,)) for name in split.row_columns),
        *(key(layout.FEATURES, (i, j)) for i in down for j in across),
        *(key(name, (i, 0)) for name, _ in sorted(split.widths) for i in down),
    ]


def marker_entries(split: SplitSpec) -> int:
    """Return the entries of a marker: rows, nonce, and the tails of as many chunks as a block has."""
    across = -(-split.dim // split.chunk_columns) + len(split.widths)
    return 2 + len(split.row_columns) + split.block_rows // split.chunk_rows * across


def encode(
    documents: Mapping[str, bytes], rows: tuple[int, int], values: Mapping[str, NDArray[Any]]
) -> dict[str, bytes]:
    """Return the chunks, by key relative to the split, that hold ``values`` at the given rows.

    Parameters
    ----------
    documents : mapping of str to bytes
        The metadata document of each array.
    rows : tuple of int
        The first row and the one behind the last; a chunk begins at the first.
    values : mapping of str to ndarray
        These rows of each array.
    """
    chunks = {}
    for name, array in values.items():
        form = ChunkForm.of(documents[name])
        separator = layout.MARKER_SEPARATOR if name == layout.WRITTEN else "/"
        for (down, *across), part in cut(array.shape, form.shape):
            key = layout.chunk_key(name, (rows[0] // form.shape[0] + down, *across), separator)
            chunks[key] = b"".join(form.encode(array[part]))
    return chunks

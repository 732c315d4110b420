"""Stored columns: their zarr documents, their bytes, and reading them by rows.

A column is a zarr array whose chunks are committed by markers; reading one never gives zarr's fill
value for a chunk that a marker says is there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import dask.array as da
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import MemoryStore, WrapperStore

from trakstore.errors import DamagedError, LocationError
from trakstore.planning import ranges
from trakstore.spec import SplitSpec
from trakstore.storage import layout
from trakstore.storage.checksums import TAIL, intact
from trakstore.storage.chunks import ChunkForm
from trakstore.storage.locations import Location, fetch

__all__ = [
    "StoredColumn",
    "StrictStore",
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
    """The metadata document of the ``masked`` column; a chunk that is not there masks nothing."""
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


class StrictStore(WrapperStore[Store]):
    """A store in which a missing chunk is an error, not zarr's fill value.

    The array's metadata document is given, not read: it follows from the split's, which has a
    checksum, so that a damaged one cannot change what is read. Chunks that have more bytes than it
    says, or would be unpacked to more, are an error before memory is taken. Of a ``sparse`` array, as
    masks are, chunks may be missing.
    """

    def __init__(self, store: Store, document: bytes, *, sparse: bool = False) -> None:
        super().__init__(store)
        self._document, self._sparse = document, sparse
        self._form = ChunkForm.of(document)

    def _with_store(self, store: Store) -> StrictStore:
        return StrictStore(store, self._document, sparse=self._sparse)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """The value at ``key``; raises :class:`DamagedError` when a chunk is not there."""
        if key.endswith(layout.document_key("")):
            return prototype.buffer.from_bytes(self._document)
        if byte_range is None:
            value = await fetch(self._store, key, prototype, self._form.most)
        else:
            value = await self._store.get(key, prototype, byte_range)
        if value is None and self._sparse:
            return None
        if value is None:
            root = layout.document_key("")
            if await self._store.get(root, prototype) is None:
                raise LocationError(f"there is no store at {self._store}: it has no {root}")
            raise DamagedError(f"chunk {key} is missing though its block was committed")
        if byte_range is None:
            self._form.check(key, value.as_buffer_like())
        return value


@lru_cache(maxsize=512)
def _opened(location: Location, path: str, document: bytes, _token: str) -> zarr.Array[Any]:
    store = StrictStore(location.store, document)
    return zarr.open_array(store, path=path, mode="r", zarr_format=3)


@dataclass(frozen=True)
class StoredColumn:
    """A column of a split, read by rows; it pickles as an address and a path.

    Attributes
    ----------
    location, path
        Where the array lies.
    shape : tuple of int
        ``(rows, dim)`` for features, ``(rows, width)`` for activations, else ``(rows,)``.
    dtype : numpy.dtype
        As stored.
    chunks : tuple of int
        Shape of a chunk.
    token : str
        Changes with the contents' identity: names Dask arrays.
    missing : tuple of (start, stop)
        Rows that were never written and are to be given as the fill value.
    compressed : bool
        Whether its chunks are.
    """

    location: Location
    path: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...]
    token: str
    missing: tuple[tuple[int, int], ...] = ()
    compressed: bool = False

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def chunk_rows(self) -> int:
        """Rows of a chunk: read these at once."""
        return self.chunks[0]

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows ``start`` to ``stop``, shape ``(stop - start, ...)``; they may be read-only.

        Raises
        ------
        DamagedError
            When a chunk is missing, truncated, or does not have its checksum.
        LocationError
            When the place cannot be read.
        """
        if not self.missing:
            return self._read(start, stop)
        rows = np.full(
            (stop - start, *self.shape[1:]), fill_value(self._dtype_name), dtype=self.dtype
        )
        for a, b in self._present(start, stop):
            rows[a - start : b - start] = self._read(a, b)
        return rows

    def __getitem__(self, key: Any) -> NDArray[Any]:
        first, *rest = key if isinstance(key, tuple) else (key,)
        start, stop, step = first.indices(self.shape[0])
        rows = self.read(start, stop)[(slice(None, None, step), *rest)]
        return rows if rows.flags.writeable else rows.copy()

    def to_dask(self) -> da.Array:
        """A lazy Dask array of the column, one block for each stored chunk of rows."""
        chunks = (tuple(b - a for a, b in ranges(self.shape[0], self.chunk_rows)), *self.shape[1:])
        name = f"{self.path.replace('/', '-')}-{self.token}"
        lazy: da.Array = da.from_array(
            self,
            chunks=chunks,
            name=name,
            asarray=False,
            meta=np.empty((0,) * self.ndim, self.dtype),
        )
        return lazy

    @property
    def _dtype_name(self) -> str:
        return "str" if self.dtype.kind == "T" else self.dtype.name

    @property
    def _document(self) -> bytes:
        return array_document(
            self._dtype_name,
            self.shape,
            self.chunks,
            column_dimensions(self.path.rpartition("/")[2], self.ndim),
            compressed=self.compressed,
        )

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        try:
            if self._plain and start < stop:
                return self._read_plain(start, stop)
            array = _opened(self.location, self.path, self._document, self.token)
            return np.asarray(array[start:stop]).astype(self.dtype, copy=False)
        except (DamagedError, LocationError):
            raise
        except OSError as error:
            raise LocationError(f"{self.location}: {self.path} cannot be read: {error}") from error
        except (ValueError, RuntimeError, TypeError, IndexError) as error:
            raise DamagedError(
                f"{self.location}: rows {start} to {stop} of {self.path} cannot be read ({error}); "
                f"the stored bytes are damaged"
            ) from error

    @property
    def _plain(self) -> bool:
        """Whether a chunk is the bytes of some whole rows and a checksum, and nothing else."""
        return (
            not self.compressed and self.dtype.kind in "iuf" and self.chunks[1:] == self.shape[1:]
        )

    def _read_plain(self, start: int, stop: int) -> NDArray[Any]:
        """As zarr reads it, with less copying: rows of one chunk are a view of its bytes."""
        step = self.chunk_rows
        parts = []
        for chunk in range(start // step, (stop - 1) // step + 1):
            first = chunk * step
            parts.append(self._chunk(chunk)[max(0, start - first) : stop - first])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _chunk(self, chunk: int) -> NDArray[Any]:
        key = f"{self.path}/c/{chunk}" + "/0" * (self.ndim - 1)
        count = math.prod(self.chunks)
        content = self.location.get_chunk(key, count * self.dtype.itemsize + TAIL)
        if content is None:
            raise self._missing(key)
        if len(content) != count * self.dtype.itemsize + TAIL or not intact(content):
            raise ValueError(f"chunk {key} has {len(content)} bytes, or another checksum")
        rows = np.frombuffer(content, self.dtype.newbyteorder("<"), count).reshape(self.chunks)
        return rows.astype(self.dtype, copy=False)

    def _missing(self, key: str) -> Exception:
        if self.location.get(layout.document_key("")) is None:
            return LocationError(f"there is no store at {self.location}")
        return DamagedError(f"chunk {key} is missing though its block was committed")

    def _present(self, start: int, stop: int) -> list[tuple[int, int]]:
        present, at = [], start
        for a, b in (*self.missing, (stop, stop)):
            if at < min(a, stop):
                present.append((at, min(a, stop)))
            at = max(at, b)
        return present

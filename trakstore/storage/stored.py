"""Reading stored columns by rows.

A column is a zarr array whose chunks are committed by markers. A chunk is read whole, has to have its
checksum, and has to be the one that its block's marker commits; nothing is ever made up for a chunk
that is not there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import dask.array as da
import numpy as np
from numcodecs import VLenUTF8, Zstd
from numpy.typing import NDArray

from trakstore.errors import DamagedError, LocationError
from trakstore.planning import ranges
from trakstore.spec import SplitSpec
from trakstore.storage.arrays import array_documents, encode, fill_value
from trakstore.storage.backends.ahead import AHEAD_BYTES, Wanted, is_wanted, read_ahead, read_key
from trakstore.storage.backends.chunks import ChunkForm
from trakstore.storage.backends.location import Location
from trakstore.storage.checksums import TAIL, intact
from trakstore.storage.layout import document_key
from trakstore.storage.markers import (
    Marker,
    MisplacedError,
    marker_of,
    tail_of_chunk,
    wanted_marker,
)

__all__ = ["StoredColumn", "read_together"]


def read_together(
    wanted: Iterable[tuple[StoredColumn, int, int]], most: int = AHEAD_BYTES
) -> AbstractContextManager[None]:
    """Within, this thread reads these columns' rows without waiting for one after the other.

    Nothing is read ahead on a local disk.

    Parameters
    ----------
    wanted : iterable of (column, start, stop)
        In the order in which they will be read.
    most : int
        Bytes that are held at a time.
    """
    found, known = list[Wanted](), set[str]()
    for column, start, stop in wanted:
        for key in [] if column.location.near else column.chunk_keys(start, stop):
            marker = column.wanted_marker(key)
            if marker is not None and marker.key not in known:
                known.add(marker.key)
                found.append(marker)
            found.append(Wanted(column.location, key, column.form.most, column.chunk_bytes + TAIL))
    return read_ahead(found, most) if len(found) > 1 else nullcontext()


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
    committed_by : SplitSpec, optional
        Of the split whose markers its chunks are compared with; None where no marker counts them.
    """

    location: Location
    path: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...]
    token: str
    missing: tuple[tuple[int, int], ...] = ()
    compressed: bool = False
    committed_by: SplitSpec | None = None

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
            When a chunk is missing, truncated, does not have its checksum, or is not the one that its
            block's marker commits.
        LocationError
            When the place cannot be read.
        """
        if not self.missing:
            return self._read(start, stop)
        kind = "str" if self.dtype.kind == "T" else self.dtype.name
        rows = np.full((stop - start, *self.shape[1:]), fill_value(kind), dtype=self.dtype)
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

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        if start >= stop:
            return np.empty((0, *self.shape[1:]), self.dtype)
        try:
            return self._settled(start, stop)
        except (DamagedError, LocationError):
            raise
        except OSError as error:
            raise LocationError(f"{self.location}: {self.path} cannot be read: {error}") from error
        except (ValueError, RuntimeError, TypeError, IndexError) as error:
            raise DamagedError(
                f"{self.location}: rows {start} to {stop} of {self.path} cannot be read ({error}); "
                f"the stored bytes are damaged"
            ) from error

    def _settled(self, start: int, stop: int) -> NDArray[Any]:
        """The rows, read again where an append, or a second writer, was just at work."""
        try:
            with self._together(start, stop):
                return self._rows(start, stop)
        except MisplacedError:
            pass
        try:
            return self._rows(start, stop, fresh=True)
        except MisplacedError:
            return self._before_append(start, stop)

    def _together(self, start: int, stop: int) -> AbstractContextManager[None]:
        """Chunks of some rows and their markers at once, unless they are on their way already."""
        if self.location.near or any(
            is_wanted(self.location, k) for k in self.chunk_keys(start, stop)
        ):
            return nullcontext()
        return read_together([(self, start, stop)])

    def _rows(self, start: int, stop: int, *, fresh: bool = False) -> NDArray[Any]:
        """Rows of one chunk are a view of its bytes."""
        step = self.chunk_rows
        parts = []
        for down in range(start // step, (stop - 1) // step + 1):
            first = down * step
            parts.append(self._whole_rows(down, fresh)[max(0, start - first) : stop - first])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _whole_rows(self, down: int, fresh: bool) -> NDArray[Any]:
        if self.chunks[1:] == self.shape[1:]:
            return self._chunk(down, 0, fresh)
        across = -(-self.shape[1] // self.chunks[1])
        parts = [self._chunk(down, at, fresh) for at in range(across)]
        return np.concatenate(parts, axis=1)[:, : self.shape[1]]

    def _chunk(self, down: int, across: int, fresh: bool) -> NDArray[Any]:
        numbers = (down, across)[: self.ndim]
        key = "/".join([self.path, "c", *map(str, numbers)])
        content = self._content(key, down, across, fresh)
        self.form.check(key, content)
        if self.dtype.kind == "T":
            texts = VLenUTF8().decode(bytes(content[:-TAIL]))
            return np.asarray(texts).astype(self.dtype)
        count = math.prod(self.chunks)
        if self.compressed:
            out = np.empty(count, self.dtype.newbyteorder("<"))
            Zstd().decode(bytes(content[:-TAIL]), out=out)
            return out.reshape(self.chunks).astype(self.dtype, copy=False)
        rows = np.frombuffer(content, self.dtype.newbyteorder("<"), count).reshape(self.chunks)
        return rows.astype(self.dtype, copy=False)

    def _content(self, key: str, down: int, across: int, fresh: bool) -> Any:
        """The bytes of a chunk, once it is known to be this one."""
        spec, most = self.committed_by, self.form.most
        marker = self._marker(key, fresh=fresh)
        read = self.location.get_chunk if fresh else partial(read_key, self.location)
        content = read(key, most)
        name = self.path.rpartition("/")[2]
        if content is None:
            if self.location.get(document_key("")) is None:
                raise LocationError(f"there is no store at {self.location}")
            raise DamagedError(f"chunk {key} is missing though its block was committed")
        if not intact(content):
            raise ValueError(f"chunk {key} does not have the checksum it was written with")
        if spec is not None and marker is not None:
            wanted = tail_of_chunk(spec, marker, name, (down, across))
            if bytes(content[-TAIL:]) != wanted:
                raise MisplacedError(
                    f"{self.location}: chunk {key} is sound but is not the one that its block's "
                    f"marker commits: it was copied here, or is an older one"
                )
        return content

    @property
    def form(self) -> ChunkForm:
        """Bytes that its chunks can have."""
        itemsize = None if self.dtype.kind == "T" else self.dtype.itemsize
        return ChunkForm(math.prod(self.chunks), itemsize, self.compressed)

    def _marker(self, key: str, *, fresh: bool) -> Marker | None:
        """The marker of a chunk's block; None where no marker counts the chunk."""
        spec = self.committed_by
        if spec is None:
            return None
        return marker_of(self.location, *self._block(key, spec), fresh=fresh)

    def wanted_marker(self, key: str) -> Wanted | None:
        """What is to be read of the marker of a chunk's block, if anything is."""
        spec = self.committed_by
        return None if spec is None else wanted_marker(self.location, *self._block(key, spec))

    def _block(self, key: str, spec: SplitSpec) -> tuple[str, SplitSpec, int]:
        down = int(key.removeprefix(f"{self.path}/c/").split("/")[0])
        return self.path.rpartition("/")[0], spec, down * self.chunk_rows // spec.block_rows

    @property
    def chunk_bytes(self) -> int:
        """Of a chunk in memory; of strings, a guess."""
        return math.prod(self.chunks) * self.dtype.itemsize

    def chunk_keys(self, start: int, stop: int) -> list[str]:
        """Keys of the chunks that some rows are in."""
        if start >= stop or self.missing:
            return []
        across = range(-(-self.shape[1] // self.chunks[1])) if self.ndim > 1 else [None]
        return [
            f"{self.path}/c/{down}" + ("" if at is None else f"/{at}")
            for down in range(start // self.chunk_rows, (stop - 1) // self.chunk_rows + 1)
            for at in across
        ]

    def _before_append(self, start: int, stop: int) -> NDArray[Any]:
        """Rows whose last block an append, that was stopped, stored again with more rows.

        The old rows are in it as they were: with nothing behind them, they end as the marker says.
        """
        spec = self.committed_by
        assert spec is not None  # else nothing is out of place
        block = spec.blocks - 1
        first, last = spec.block_range(block)
        if stop <= first or last - first == spec.block_rows:
            return self._rows(start, stop)
        split, _, name = self.path.rpartition("/")
        rows = replace(self, committed_by=None).read(first, last)
        chunks = encode({name: array_documents(spec)[name]}, (first, last), {name: rows})
        marker = marker_of(self.location, split, spec, block, fresh=True)
        for key, content in chunks.items():
            numbers = [int(one) for one in key.split("/")[2:]] + [0]
            if content[-TAIL:] != tail_of_chunk(spec, marker, name, (numbers[0], numbers[1])):
                return self._rows(start, stop)  # raises
        before = [self._rows(start, first)] if start < first else []
        return np.concatenate([*before, rows[max(0, start - first) : stop - first]])

    def _present(self, start: int, stop: int) -> list[tuple[int, int]]:
        present, at = [], start
        for a, b in (*self.missing, (stop, stop)):
            if at < min(a, stop):
                present.append((at, min(a, stop)))
            at = max(at, b)
        return present

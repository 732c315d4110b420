"""Reading stored columns by rows.

A column is a zarr array whose chunks are committed by markers. A chunk is read whole, and must have its
checksum, and must be the one that its block's marker commits. Nothing is ever invented for a missing
chunk.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from trakstore.errors import DamagedError, LocationError, TrakStoreError, error_context
from trakstore.planning import ranges, span_of
from trakstore.quantities import is_whole, shown
from trakstore.spec import SplitSpec
from trakstore.storage import layout
from trakstore.storage.arrays import array_documents, encode
from trakstore.storage.backends.ahead import AHEAD_BYTES, Wanted, is_wanted, read_ahead, read_key
from trakstore.storage.backends.chunks import TAIL, ChunkForm, fill_value, grid, intact
from trakstore.storage.backends.location import Location
from trakstore.storage.dropped_rows import dropped_columns, dropped_error, is_dropped
from trakstore.storage.eight_bits import dequantised
from trakstore.storage.markers import MisplacedError, marker_of, tail_of_chunk, wanted_marker


def read_together(
    wanted: Iterable[tuple[StoredColumn, int, int]], most: int = AHEAD_BYTES
) -> AbstractContextManager[None]:
    """Within, have this thread read these columns' rows in advance, without waiting one by one.

    On a local disk nothing is read in advance.

    Parameters
    ----------
    wanted : iterable of (column, start, stop)
        Rows in the order in which they will be read.
    most : int
        Bytes that are held at a time.
    """
    values, markers = list[Wanted](), set[str]()
    for column, start, stop in _with_scales(wanted):
        for numbers in [] if column.location.near else column.chunks_of(start, stop):
            marker = column.wanted_marker(numbers)
            # A marker commits many chunks and is cached: it is read once.
            if marker is not None and marker.key not in markers:
                markers.add(marker.key)
                values.append(marker)
            form, key = column.form, layout.chunk_key(column.path, numbers)
            values.append(Wanted(column.location, key, form.most, form.size + TAIL))
    return read_ahead(values, most) if len(values) > 1 else nullcontext()


def _with_scales(
    wanted: Iterable[tuple[StoredColumn, int, int]],
) -> Iterator[tuple[StoredColumn, int, int]]:
    """Yield reads of columns, each followed by a read of its rows' scale, if there is one."""
    for column, start, stop in wanted:
        yield column, start, stop
        if column.scale is not None:
            yield column.scale, start, stop


@dataclass(frozen=True)
class StoredColumn:
    """A column of a split, read by rows; it pickles as an address and a path.

    Attributes
    ----------
    location, path
        Place of the array.
    shape : tuple of int
        ``(rows, dim)`` for features, ``(rows, width)`` for activations, else ``(rows,)``.
    form : ChunkForm
        Shape and encoding of its chunks.
    token : str
        Name for Dask, which changes when the contents do.
    missing : tuple of (start, stop)
        Rows that were never written, and are returned as the fill value.
    committed_by : SplitSpec, optional
        Spec of the split whose markers commit its chunks; None if no marker does.
    scale : StoredColumn, optional
        Scale of each row, by which its integers are multiplied; the result is float32.
    """

    location: Location
    path: str
    shape: tuple[int, ...]
    form: ChunkForm
    token: str
    missing: tuple[tuple[int, int], ...] = ()
    committed_by: SplitSpec | None = None
    scale: StoredColumn | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of rows as read: the stored one, or float32 if rows have a scale."""
        return self.form.values if self.scale is None else np.dtype(np.float32)

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def chunk_rows(self) -> int:
        """Rows of a chunk: read these at once."""
        return self.form.shape[0]

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return rows ``start`` to ``stop``, shape ``(stop - start, ...)``; they may be read-only.

        Raises
        ------
        DamagedError
            When a chunk is missing, truncated, does not have its checksum, or is not the one that its
            block's marker commits.
        IncompleteError
            When the features were dropped.
        LocationError
            When the place cannot be read.
        """
        if not self.missing:
            return self._read(start, stop)
        rows = np.full(
            (stop - start, *self.shape[1:]),
            fill_value(self.dtype.name if self.scale else self.form.dtype),
            self.dtype,
        )
        for a, b in self._present(start, stop):
            rows[a - start : b - start] = self._read(a, b)
        return rows

    def __getitem__(self, key: Any) -> NDArray[Any]:
        first, *rest = key if isinstance(key, tuple) else (key,)
        taken: Any
        if isinstance(first, slice):
            wanted = range(*first.indices(self.shape[0]))
            low, high = span_of(wanted)
            taken = slice(None, None, wanted.step)
        elif not is_whole(first):
            raise TrakStoreError(
                f"{self.path} takes a row or a slice of rows, got {shown(first)}: read rows with "
                f"read(start, stop), or take any others of to_dask() or of the store's xarray"
            )
        else:  # a single row, as Dask asks for it when one is taken from a lazy array
            low = range(self.shape[0])[first]
            high, taken = low + 1, 0
        rows = self.read(low, high)[(taken, *rest)]
        # A view of a chunk's bytes is read-only, but people and Dask may write into slices.
        return np.array(rows) if not rows.flags.writeable else rows

    def to_dask(self, rows: int | None = None) -> da.Array:
        """Return a lazy Dask array of the column in blocks of ``rows``, or of a stored chunk's rows."""
        rows = rows or self.chunk_rows
        chunks = (tuple(b - a for a, b in ranges(self.shape[0], rows)), *self.shape[1:])
        name = f"{self.path.replace('/', '-')}-{self.token}-{rows}"
        meta = np.empty((0,) * self.ndim, self.dtype)
        lazy: da.Array = da.from_array(self, chunks=chunks, name=name, asarray=False, meta=meta)
        return lazy

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        if start >= stop:
            return np.empty((0, *self.shape[1:]), self.dtype)
        try:
            return self._read_again(start, stop)
        except (DamagedError, LocationError):
            raise
        except OSError as error:
            raise LocationError(f"{self.location}: {self.path} cannot be read: {error}") from error

    def _read_again(self, start: int, stop: int) -> NDArray[Any]:
        """Read rows, and try again if an append or a second writer was at work.

        A writer stores the chunks of a block before its marker. In between, a sound chunk disagrees
        with the old marker, and a cached marker may be older than the chunk. Only a chunk that
        disagrees with the present marker is damaged, or left by a stopped append.
        """
        try:
            with self._together(start, stop):
                return self._scaled(self._rows(start, stop), start, stop)
        except MisplacedError:
            pass
        try:
            rows = self._rows(start, stop, fresh=True)
        except MisplacedError:
            rows = self._before_append(start, stop)
        return self._scaled(rows, start, stop)

    def _scaled(self, rows: NDArray[Any], start: int, stop: int) -> NDArray[Any]:
        """Return rows that were read, times the scale of each if there is one."""
        return rows if self.scale is None else dequantised(rows, self.scale.read(start, stop))

    def _together(self, start: int, stop: int) -> AbstractContextManager[None]:
        """Begin reading the chunks of some rows and their markers at once, unless this has begun."""
        place = self.location
        keys = [] if place.near else self.chunks_of(start, stop)
        if any(is_wanted(place, layout.chunk_key(self.path, numbers)) for numbers in keys):
            return nullcontext()
        return read_together([(self, start, stop)])

    def _rows(self, start: int, stop: int, *, fresh: bool = False) -> NDArray[Any]:
        """Return some rows; those of one chunk are a view of its bytes."""
        step, parts = self.chunk_rows, []
        for down in range(start // step, (stop - 1) // step + 1):
            tiles = [self._chunk(numbers, fresh) for numbers in self._chunks_across(down)]
            whole = tiles[0] if len(tiles) == 1 else np.concatenate(tiles, axis=1)
            first = down * step
            own = whole[max(0, start - first) : stop - first]
            parts.append(own if self.ndim == 1 else own[:, : self.shape[1]])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def chunks_of(self, start: int, stop: int) -> list[tuple[int, ...]]:
        """Return the numbers of the chunks in which some rows lie."""
        if start >= stop or self.missing:
            return []
        down = range(start // self.chunk_rows, (stop - 1) // self.chunk_rows + 1)
        return [numbers for at in down for numbers in self._chunks_across(at)]

    def _chunks_across(self, down: int) -> Iterator[tuple[int, ...]]:
        if self.ndim == 1:
            return iter([(down,)])
        return ((down, at) for at in range(grid(self.shape, self.form.shape)[1]))

    def _chunk(self, numbers: tuple[int, ...], fresh: bool) -> NDArray[Any]:
        """Return the values of a chunk, after checking that it is the committed one."""
        key, spec = layout.chunk_key(self.path, numbers), self.committed_by
        committed = self.committed_tail(numbers, fresh=fresh)
        read = self.location.get_chunk if fresh else partial(read_key, self.location)
        content = read(key, self.form.most)
        # zarr would invent fill values for a missing chunk.
        if content is None:
            if self.location.get(layout.DOCUMENT) is None:
                raise LocationError(f"there is no store at {self.location}")
            # Chunks may be deleted on purpose, even since the split was opened; otherwise a missing one
            # is damage.
            split, own = layout.parent(self.path), layout.last_part(self.path)
            goes = spec is not None and own in dropped_columns(spec)
            if spec is not None and goes and is_dropped(self.location, split, spec):
                raise dropped_error(split)
            raise DamagedError(f"chunk {key} is missing though its block was committed")
        if not intact(content):
            raise DamagedError(
                f"{self.location}: chunk {key} does not have the checksum it was written with; the "
                f"stored bytes are damaged"
            )
        if committed is not None and bytes(content[-TAIL:]) != committed:
            raise MisplacedError(
                f"{self.location}: chunk {key} is sound but is not the one that its block's "
                f"marker commits: it was copied here, or is an older one"
            )
        with error_context(str(self.location)):
            return self.form.decode(key, content)

    def committed_tail(self, numbers: tuple[int, ...], *, fresh: bool = False) -> bytes | None:
        """Return the checksum that a block's marker has for a chunk; None if no marker counts it."""
        spec = self.committed_by
        if spec is None:
            return None
        marker = marker_of(*self._block(numbers, spec), fresh=fresh)
        return tail_of_chunk(spec, marker, layout.last_part(self.path), numbers)

    def wanted_marker(self, numbers: tuple[int, ...]) -> Wanted | None:
        """Return the marker read that a chunk needs; None if it needs none."""
        spec = self.committed_by
        return None if spec is None else wanted_marker(*self._block(numbers, spec))

    def _block(
        self, numbers: tuple[int, ...], spec: SplitSpec
    ) -> tuple[Location, str, SplitSpec, int]:
        block = numbers[0] * self.chunk_rows // spec.block_rows
        return self.location, layout.parent(self.path), spec, block

    def _before_append(self, start: int, stop: int) -> NDArray[Any]:
        """Return rows whose last block was stored again, with more rows, by a stopped append.

        The old rows are in it unchanged: with fill values after them, they have the tails in the
        marker.
        """
        spec = self.committed_by
        assert spec is not None  # otherwise no chunk can be misplaced
        block = spec.blocks - 1
        first, last = spec.block_range(block)
        if stop <= first or last - first == spec.block_rows:
            return self._rows(start, stop)
        # The tails in the old marker belong to chunks with fill values after the old rows. The rows are
        # read without the marker, and encoded as they were then: equal tails show equal rows.
        split, _, name = self.path.rpartition("/")
        rows = replace(self, committed_by=None, scale=None).read(first, last)
        chunks = encode({name: array_documents(spec)[name]}, (first, last), {name: rows})
        marker = marker_of(self.location, split, spec, block, fresh=True)
        for key, content in chunks.items():
            numbers = layout.chunk_numbers(layout.below(name, key))
            if content[-TAIL:] != tail_of_chunk(spec, marker, name, numbers):
                return self._rows(start, stop)  # raises
        before = [self._rows(start, first)] if start < first else []
        return np.concatenate([*before, rows[max(0, start - first) : stop - first]])

    def _present(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield the ranges of rows between ``start`` and ``stop`` that are not missing."""
        at = start
        for a, b in (*self.missing, (stop, stop)):
            if at < min(a, stop):
                yield at, min(a, stop)
            at = max(at, b)

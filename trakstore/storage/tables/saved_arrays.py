"""Arrays of a saved table: made, read, and checked by their group's document.

The group's document, which has a checksum and is written last, holds the shape of each array, and the
checksum that ends each of its chunks, so that no other chunk is taken for it. An array's own document
follows from that, as a column's follows from its split's.
"""

from __future__ import annotations

import base64
import itertools
import math
import operator
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Self

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from trakstore.documents import NAME, each, fields, made_by, one_of, text, whole
from trakstore.errors import DamagedError, LocationError, error_context
from trakstore.quantities import is_whole, shown
from trakstore.storage import layout
from trakstore.storage.arrays import array_document
from trakstore.storage.backends.chunks import TAIL, ChunkForm, cut, grid, intact
from trakstore.storage.backends.location import Location
from trakstore.storage.backends.together import together
from trakstore.storage.block_checks import Finding
from trakstore.storage.columns import column_dtype

_AT_ONCE = 4096  # chunks whose ends are read at once,
_TASK_BYTES = 64_000_000  # of a lazy block
_READ_AT_ONCE = 16  # chunks that are read at once,
_WRITE_AT_ONCE = 8  # and chunks that are written at once


@dataclass(frozen=True)
class SavedArray:
    """One array of a saved table.

    Attributes
    ----------
    name : str
        Name below the table's group.
    dtype : str
        NumPy's name, or ``"str"``.
    shape, chunks : tuple of int
        Shape of the array, and of a chunk.
    dimensions : tuple of str
        Names of its dimensions.
    tails : bytes, optional
        Checksums that end its chunks, row by row, once all are written; None until then, and in
        tables of format 1.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dimensions: tuple[str, ...]

    tails: bytes | None = None

    @classmethod
    def of(
        cls, name: str, values: NDArray[Any], dimensions: tuple[str, ...], most: int | None = None
    ) -> Self:
        """Make the array that holds some values, with ``most`` rows in a chunk at most."""
        rows = len(values) if most is None else min(len(values), most)
        return cls(name, column_dtype(values), values.shape, (rows, *values.shape[1:]), dimensions)

    @classmethod
    def from_dict(cls, entry: dict[str, Any]) -> Self:
        """Read an array from an entry of the group's document.

        Raises
        ------
        DamagedError
            When it is no such entry.
        """
        made = cls(**fields(entry, _ARRAY, ("tails",), "a saved array"))
        if not _fits_together(made):
            raise DamagedError(
                f"a saved array {made.name} of shape {made.shape} in chunks of {made.chunks} is none "
                f"that any writer makes"
            )
        if made.tails is not None and len(made.tails) != TAIL * made.chunk_count:
            raise DamagedError(f"array {made.name} has another number of chunks than checksums")
        return made

    def to_dict(self) -> dict[str, Any]:
        """Return a dict for JSON; without the checksums where they are not known."""
        entry = {name: value for name, value in asdict(self).items() if name != "tails"}
        if self.tails is None:
            return entry
        return {**entry, "tails": base64.b64encode(self.tails).decode()}

    @property
    def document(self) -> bytes:
        """Metadata document of the array."""
        return array_document(self.form, self.shape, self.dimensions)

    @property
    def form(self) -> ChunkForm:
        """Shape and encoding of its chunks."""
        return ChunkForm(self.chunks, self.dtype)

    @property
    def chunk_count(self) -> int:
        """Number of its chunks."""
        return math.prod(grid(self.shape, self.chunks))

    def keys(self, group: str) -> Iterator[str]:
        """Yield the keys of its chunks, row by row."""
        path = layout.child(group, self.name)
        return (layout.chunk_key(path, numbers) for numbers, _ in cut(self.shape, self.chunks))

    def sealed(self, location: Location, group: str) -> Self:
        """Return the same with the checksums of its chunks as they are now: all of them are written.

        Raises
        ------
        DamagedError
            When a chunk is not there.
        """
        tails_now: list[bytes] = []
        keys = self.keys(group)
        while some := list(itertools.islice(keys, _AT_ONCE)):
            for key, tail in zip(some, location.get_tails(some, TAIL), strict=True):
                if tail is None or len(tail) < TAIL:
                    raise DamagedError(f"{location}: {key} was deleted while it was being saved")
                tails_now.append(tail)
        return replace(self, tails=b"".join(tails_now))

    def create(self, location: Location, group: str) -> None:
        """Make the array anew, without what an earlier, stopped save left in its place."""
        path = layout.child(group, self.name)
        # A chunk of before would be sound, and could be taken for one of this save that is done.
        location.delete(location.find(path, lambda _: True))
        location.put({layout.document_key(path): self.document})

    def write(
        self,
        location: Location,
        group: str,
        values: NDArray[Any],
        first: tuple[int, ...] | None = None,
    ) -> None:
        """Write a block of whole chunks; when this returns, they would survive a power loss.

        Parameters
        ----------
        location, group
            The table.
        values : ndarray
            The block; it may end within a chunk, behind which there is nothing yet.
        first : tuple of int, optional
            Indices of its first value, which is the first of a chunk; that of the array by default.
        """
        encoded = self._encoded(group, values, first or (0,) * values.ndim)
        chunks = ((key, b"".join(parts)) for key, parts in encoded)
        while some := dict(itertools.islice(chunks, _WRITE_AT_ONCE)):
            location.put(some)

    def write_unflushed(
        self, location: Location, group: str, values: NDArray[Any], first: tuple[int, ...]
    ) -> None:
        """Write a block as :meth:`write` does, and leave it to the system to flush.

        After a power loss some chunks may be empty, which their checksums tell.
        """
        for key, parts in self._encoded(group, values, first):
            location.put_chunk(key, *parts)

    def append(self, location: Location, group: str, values: NDArray[Any], count: int) -> None:
        """Write values behind the first ``count`` of a one-dimensional array, as :meth:`write` does."""
        (step,) = self.chunks
        begun = count % step
        if begun:
            # The chunk that they begin in is stored again, with what it had.
            before = self.open(location, group)[count - begun : count]
            own, values = values[: step - begun], values[step - begun :]
            self.write(location, group, np.concatenate([before, own]), (count - begun,))
            count += len(own)
        self.write(location, group, values, (count,))

    def _encoded(
        self, group: str, values: NDArray[Any], first: tuple[int, ...]
    ) -> Iterator[tuple[str, tuple[bytes, bytes]]]:
        """Yield the keys of a block's chunks, with their contents and tails."""
        path, form = layout.child(group, self.name), self.form
        corner = [at // step for at, step in zip(first, self.chunks, strict=True)]
        for numbers, part in cut(values.shape, self.chunks):
            key = layout.chunk_key(path, map(operator.add, corner, numbers))
            yield key, form.encode(values[part])

    def open(self, location: Location, group: str) -> TableArray:
        """Open the array to read parts of it."""
        return TableArray(location, layout.child(group, self.name), self)

    def read(self, location: Location, group: str) -> NDArray[Any]:
        """Read all of it, shape ``shape``; meant for small ones.

        Raises
        ------
        DamagedError
            When a chunk is missing, damaged, or is not the one that was written.
        """
        return self.open(location, group)[...]

    def check(self, location: Location, group: str) -> Iterator[Finding]:
        """Check that its document and every chunk of its grid are there and as they were written."""
        path = layout.child(group, self.name)
        document = layout.document_key(path)
        known, missing = {document}, 0
        try:
            there = location.find(path, lambda _: True)
            stored = location.get(document)
        except DamagedError as error:
            yield Finding("foreign", path, str(error))
            return
        if stored != self.document:
            yield Finding("document", document, "is missing, damaged or disagrees with the group's")
        for at, key in enumerate(self.keys(group)):
            known.add(key)
            finding = self._wrong(location, key, at)
            # A document may speak of millions of chunks that nobody wrote: not each is told by itself.
            missing += finding is not None and finding.kind == "missing"
            if missing > len(there) + _MOST_MISSING:
                yield Finding(
                    "missing", layout.chunk_folder(path), f"lacks most of {self.chunk_count} chunks"
                )
                return
            if finding is not None:
                yield finding
        for key in there:
            if key not in known and not layout.is_leftover(key):
                yield Finding("foreign", key, "is not part of the array; remove it by hand")

    def _wrong(self, location: Location, key: str, at: int) -> Finding | None:
        """Return what is wrong with a chunk, which is number ``at`` of its grid."""
        try:
            value = location.get(key, self.form.most)
            if value is None:
                return Finding("missing", key, "is missing")
            self.form.check(key, value)
        except DamagedError as error:
            return Finding("damaged", key, str(error).removeprefix(f"{key} "))
        if not intact(value):
            return Finding("damaged", key, "does not have its checksum")
        if self.tails is not None and value[-TAIL:] != self.tails[TAIL * at : TAIL * (at + 1)]:
            return Finding("foreign", key, "is sound but is not the chunk that was written here")
        return None


_SIZES = each(whole(0, 2**53))
_ARRAY = {
    "name": text(NAME),
    "dtype": one_of(
        *("float64", "float32", "float16", "int64", "int32", "uint64", "uint32", "uint8", "bool"),
        "str",
    ),
    "shape": _SIZES,
    "chunks": _SIZES,
    "dimensions": each(text()),
    "tails": made_by(partial(base64.b64decode, validate=True), "checksums in base64"),
}
_MOST_MISSING = 1000  # chunks that are told one by one
_MOST_CHUNKS, _MOST_CHUNK_BYTES = 2**22, 2**30


def _fits_together(array: SavedArray) -> bool:
    """Tell whether an array has a chunk shape, and no more and no larger chunks than writers make."""
    shape, chunks = array.shape, array.chunks
    return (
        1 <= len(shape) == len(chunks) == len(array.dimensions) <= 3
        and min(chunks) > 0
        and array.chunk_count <= _MOST_CHUNKS
        and array.form.most <= _MOST_CHUNK_BYTES
    )


@dataclass(frozen=True, eq=False)
class TableArray:
    """A saved array, read part by part; it pickles as an address, a path and its checksums.

    Its shape, its chunks and their checksums are those of the group's document, which has a checksum
    itself: a damaged document of the array cannot change what is read. A chunk that is missing is an
    error, not a fill value, and so is one that was written elsewhere.

    Attributes
    ----------
    location, path
        Place of the array.
    saved : SavedArray
        The array by the group's document.
    """

    location: Location
    path: str
    saved: SavedArray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.saved.shape

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.saved.form.values

    @property
    def chunks(self) -> tuple[int, ...]:
        """Shape of a chunk."""
        return self.saved.chunks

    def __dask_tokenize__(self) -> Any:
        return str(self.location), self.path, self.saved.to_dict()

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """Read a part, by slices or numbers, one for each of the first dimensions.

        Raises
        ------
        IndexError
            For a number outside of its dimension, or an index of another kind.
        """
        asked = [] if index is ... else list(index) if isinstance(index, tuple) else [index]
        asked += [slice(None)] * (self.ndim - len(asked))
        ranges, within = list[range](), list[int | slice]()
        for one, size in zip(asked, self.shape, strict=True):
            if isinstance(one, slice):
                wanted = range(size)[one]
                # The rows between the steps are read too, and left out afterwards.
                low, high = (min(wanted), max(wanted) + 1) if wanted else (0, 0)
                within.append(slice(None, None, wanted.step))
            elif is_whole(one) and -size <= int(one) < size:
                low = int(one) % size
                high = low + 1
                within.append(0)
            else:
                raise IndexError(f"an index is a slice or a number below {size}, got {shown(one)}")
            ranges.append(range(low, high))
        return self._read(ranges)[tuple(within)]

    def _read(self, wanted: list[range]) -> NDArray[Any]:
        out = np.empty(tuple(map(len, wanted)), self.dtype)

        def take(numbers: tuple[int, ...]) -> None:
            chunk, into, of = self._chunk(numbers), list[slice](), list[slice]()
            for at, step, one in zip(numbers, self.chunks, wanted, strict=True):
                low, high = max(at * step, one.start), min((at + 1) * step, one.stop)
                into.append(slice(low - one.start, high - one.start))
                of.append(slice(low - at * step, high - at * step))
            out[tuple(into)] = chunk[tuple(of)]

        grids = [
            range(one.start // step, -(-one.stop // step)) if one else range(0)
            for one, step in zip(wanted, self.chunks, strict=True)
        ]
        # Some at a time: what is on its way from another machine takes memory beside the result.
        chunks = itertools.product(*grids)
        while some := list(itertools.islice(chunks, _READ_AT_ONCE)):
            together(self.location, [partial(take, numbers) for numbers in some])
        return out

    def _chunk(self, numbers: tuple[int, ...]) -> NDArray[Any]:
        """Read a chunk; raises a :class:`DamagedError` unless it is the one that was written there."""
        key, form, tails = layout.chunk_key(self.path, numbers), self.saved.form, self.saved.tails
        content = self.location.get_chunk(key, form.most)
        if content is None:
            if not self.location.names(""):
                raise LocationError(f"there is no store at {self.location}: nothing is there")
            raise DamagedError(f"{self.location}: chunk {key} is missing")
        if not intact(content):
            raise DamagedError(
                f"{self.location}: chunk {key} does not have the checksum it was written with"
            )
        # That a chunk is sound does not make it this one: it may be of another place, or an older one.
        at = int(np.ravel_multi_index(numbers, grid(self.shape, self.chunks)))
        if tails is not None and bytes(content[-TAIL:]) != tails[TAIL * at : TAIL * (at + 1)]:
            raise DamagedError(
                f"{self.location}: chunk {key} is not the one that was written there: it was replaced"
            )
        with error_context(str(self.location)):
            return form.decode(key, content)

    def to_dask(self) -> da.Array:
        """Return a lazy Dask array: a block is a stored chunk, or several along the last dimension.

        Dask is slow where blocks are small, so a block has as many chunks as make up 64 MB.
        """
        meta = np.empty((0,) * self.ndim, self.dtype)
        *first, last = self.chunks
        chunk_bytes = math.prod(self.chunks) * max(self.dtype.itemsize, 1)
        blocks = (*first, last * max(1, _TASK_BYTES // chunk_bytes))
        lazy: da.Array = da.from_array(
            self, blocks, asarray=False, fancy=False, meta=meta, inline_array=False
        )
        return lazy

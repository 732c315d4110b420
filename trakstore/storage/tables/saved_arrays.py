"""Arrays of a saved table: made, read, and checked by their group's document.

The group's document, which has a checksum and is written last, holds the shape of each array, and the
checksum that ends each of its chunks, so that no other chunk is taken for it; an array's own document
follows from that, as a column's follows from its split's.
"""

from __future__ import annotations

import base64
import itertools
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import WrapperStore

from trakstore.documents import NAME, each, fields, made_by, one_of, text, whole
from trakstore.errors import DamagedError, LocationError
from trakstore.storage import layout
from trakstore.storage.arrays import array_document, fill_value
from trakstore.storage.backends.chunks import ChunkForm
from trakstore.storage.backends.location import Location, fetch
from trakstore.storage.block_checks import Finding
from trakstore.storage.checksums import TAIL, intact, tail_of
from trakstore.storage.split import group_document

__all__ = ["UNFINISHED", "SavedArray", "begin_group"]

_WRITE_ALL: Any = {"write_empty_chunks": True}  # else a chunk of fill values would look unwritten
UNFINISHED = group_document({})  # the group's document until all is saved
_AT_ONCE = 4096  # chunks whose ends are read at once


@dataclass(frozen=True)
class SavedArray:
    """One array of a saved matrix.

    Attributes
    ----------
    name : str
        Below the matrix's group.
    dtype : str
        NumPy's name, or ``"str"``.
    shape, chunks : tuple of int
        Of the array, and of a chunk.
    dimensions : tuple of str
        Their names.
    tails : bytes, optional
        The checksums that end its chunks, row by row, once all are written; None until then, and in
        tables of format 1.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dimensions: tuple[str, ...]

    tails: bytes | None = None

    @classmethod
    def from_dict(cls, told: dict[str, Any]) -> Self:
        """From an entry of the group's document.

        Raises
        ------
        DamagedError
            When it is no such entry.
        """
        made = cls(**fields(told, _ARRAY, ("tails",), "a saved array"))
        if not _fits_together(made):
            raise DamagedError(
                f"a saved array {made.name} of shape {made.shape} in chunks of {made.chunks} is none "
                f"that any writer makes"
            )
        if made.tails is not None and len(made.tails) != TAIL * math.prod(made.grid):
            raise DamagedError(f"array {made.name} has another number of chunks than checksums")
        return made

    def to_dict(self) -> dict[str, Any]:
        """A dict for JSON; without the checksums where they are not known."""
        told = {name: value for name, value in asdict(self).items() if name != "tails"}
        if self.tails is None:
            return told
        return {**told, "tails": base64.b64encode(self.tails).decode()}

    @property
    def document(self) -> bytes:
        """The array's metadata document."""
        return array_document(self.dtype, self.shape, self.chunks, self.dimensions)

    @property
    def grid(self) -> tuple[int, ...]:
        """How many chunks there are along each dimension."""
        return tuple(-(-n // c) for n, c in zip(self.shape, self.chunks, strict=True))

    def keys(self, group: str) -> Iterator[str]:
        """The keys of its chunks, row by row."""
        for at in itertools.product(*map(range, self.grid)):
            yield "/".join([group, self.name, "c", *map(str, at)])

    def sealed(self, location: Location, group: str) -> Self:
        """The same with the checksums of its chunks as they are now: all of them are written.

        Raises
        ------
        DamagedError
            When a chunk is not there.
        """
        found: list[bytes] = []
        keys = self.keys(group)
        while some := list(itertools.islice(keys, _AT_ONCE)):
            for key, tail in zip(some, location.get_tails(some, TAIL), strict=True):
                if tail is None or len(tail) < TAIL:
                    raise DamagedError(f"{location}: {key} was deleted while it was being saved")
                found.append(tail)
        return replace(self, tails=b"".join(found))

    def create(self, location: Location, group: str) -> None:
        """Make the array anew, without what an earlier, stopped save left in its place."""
        path = f"{group}/{self.name}"
        location.delete(location.find(path, lambda _: True))
        location.put({layout.document_key(path): self.document})

    def open(self, location: Location, group: str, mode: Literal["r", "r+"] = "r") -> Any:
        """The zarr array; a missing chunk, or another one, raises a :class:`DamagedError`."""
        store, path = location.store, f"{group}/{self.name}"
        if mode == "r":
            bound = None if self.tails is None else BoundChunks(path, self.grid, self.tails)
            store = StrictStore(store, self.document, bound)
        return zarr.open_array(store, path=path, mode=mode, zarr_format=3, config=_WRITE_ALL)

    def write_chunks(
        self, location: Location, group: str, first: tuple[int, int], block: NDArray[Any]
    ) -> None:
        """Write a block of whole chunks of a matrix from row and column ``first`` on.

        As zarr writes them, with less copying, and left to the system to flush: after a power loss
        some may be empty, which their checksums tell.
        """
        height, width = self.chunks
        corners = itertools.product(
            range(0, block.shape[0], height), range(0, block.shape[1], width)
        )
        for i, j in corners:
            part = block[i : i + height, j : j + width]
            if part.shape != self.chunks:  # the last of a row or column: filled up
                whole = np.full(self.chunks, fill_value(self.dtype), part.dtype)
                whole[: part.shape[0], : part.shape[1]] = part
                part = whole
            content = part.astype(part.dtype.newbyteorder("<"), copy=False).tobytes()
            key = f"{group}/{self.name}/c/{(first[0] + i) // height}/{(first[1] + j) // width}"
            location.put_chunk(key, content, tail_of(content))

    def read(self, location: Location, group: str) -> NDArray[Any]:
        """All of it, shape ``shape``; meant for small ones.

        Raises
        ------
        DamagedError
            When a chunk is missing, damaged, or is not the one that was written.
        """
        try:
            return np.asarray(self.open(location, group)[...])
        except (DamagedError, LocationError):
            raise
        except (ValueError, RuntimeError, TypeError, IndexError) as error:
            raise DamagedError(
                f"{location}: {group}/{self.name} cannot be read ({error}); its bytes are damaged"
            ) from error

    def check(self, location: Location, group: str) -> Iterator[Finding]:
        """Whether its document and every chunk of its grid are there and as they were written."""
        path = f"{group}/{self.name}"
        document = layout.document_key(path)
        known, missing = {document}, 0
        try:
            there = location.find(path, lambda _: True)
            found = location.get(document)
        except DamagedError as error:
            yield Finding("foreign", path, str(error))
            return
        if found != self.document:
            yield Finding("document", document, "is missing, damaged or disagrees with the group's")
        for at, key in enumerate(self.keys(group)):
            known.add(key)
            finding = self._wrong(location, key, at)
            missing += finding is not None and finding.kind == "missing"
            if missing > len(there) + _MOST_MISSING:
                yield Finding(
                    "missing", f"{path}/c", f"lacks most of {math.prod(self.grid)} chunks"
                )
                return
            if finding is not None:
                yield finding
        for key in there:
            if key not in known and not layout.is_leftover(key):
                yield Finding("foreign", key, "is not part of the array; remove it by hand")

    def _wrong(self, location: Location, key: str, at: int) -> Finding | None:
        """What is wrong with a chunk, the so manieth of its grid."""
        form = ChunkForm.of(self.document)
        try:
            value = location.get(key, form.most)
            if value is None:
                return Finding("missing", key, "is missing")
            form.check(key, value)
        except DamagedError as error:
            return Finding("damaged", key, str(error).removeprefix(f"{key} "))
        if not intact(value):
            return Finding("damaged", key, "does not have its checksum")
        if self.tails is not None and value[-TAIL:] != self.tails[TAIL * at : TAIL * (at + 1)]:
            return Finding("foreign", key, "is sound but is not the chunk that was written here")
        return None


def _decoded(text: Any) -> bytes:
    return base64.b64decode(text, validate=True)


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
    "tails": made_by(_decoded, "checksums in base64"),
}
_MOST_MISSING = 1000  # chunks that are told one by one
_MOST_CHUNKS, _MOST_CHUNK_BYTES = 2**22, 2**30


def _fits_together(array: SavedArray) -> bool:
    """Whether an array has a chunk shape, and no more and no larger chunks than writers make."""
    shape, chunks = array.shape, array.chunks
    return (
        1 <= len(shape) == len(chunks) == len(array.dimensions) <= 3
        and min(chunks) > 0
        and math.prod(array.grid) <= _MOST_CHUNKS
        and ChunkForm.of(array.document).most <= _MOST_CHUNK_BYTES
    )


@dataclass(frozen=True)
class BoundChunks:
    """The checksums that the chunks of an array end in, by place.

    Attributes
    ----------
    path : str
        Of the array.
    grid : tuple of int
        How many chunks there are along each dimension.
    tails : bytes
        Row by row.
    """

    path: str
    grid: tuple[int, ...]
    tails: bytes

    def refuse(self, key: str, content: bytes) -> None:
        """Raise a :class:`DamagedError` for a chunk that is not the one that was written."""
        numbers = key.removeprefix(f"{self.path}/c/").split("/") if self.grid else []
        at = 0
        for number, size in zip(map(int, numbers), self.grid, strict=True):
            at = at * size + number
        if content[-TAIL:] != self.tails[TAIL * at : TAIL * (at + 1)]:
            raise DamagedError(
                f"chunk {key} is not the one that was written there: it was replaced"
            )


class StrictStore(WrapperStore[Store]):
    """A store of one array in which a missing chunk is an error, not zarr's fill value.

    The array's metadata document is given, not read: it follows from the group's, which has a
    checksum, so that a damaged one cannot change what is read. Where they are bound, chunks are
    compared with what was written in their place. Chunks of more bytes than the document says are an
    error before memory is taken.
    """

    def __init__(self, store: Store, document: bytes, bound: BoundChunks | None = None) -> None:
        super().__init__(store)
        self._document, self._bound = document, bound
        self._form = ChunkForm.of(document)

    def _with_store(self, store: Store) -> StrictStore:
        return StrictStore(store, self._document, self._bound)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """The value at ``key``; raises :class:`DamagedError` when a chunk is not there, or another."""
        if key.endswith(layout.document_key("")):
            return prototype.buffer.from_bytes(self._document)
        if byte_range is None:
            value = await fetch(self._store, key, prototype, self._form.most)
        else:
            value = await self._store.get(key, prototype, byte_range)
        if value is None:
            if await self._store.is_empty(""):
                raise LocationError(f"there is no store at {self._store}: nothing is there")
            raise DamagedError(f"chunk {key} is missing")
        self._form.check(key, value.as_buffer_like())
        content = np.asarray(value.as_numpy_array())
        if not intact(content):
            raise DamagedError(f"chunk {key} does not have the checksum it was written with")
        if self._bound is not None:
            self._bound.refuse(key, content[-TAIL:].tobytes())
        return value


def begin_group(location: Location, path: str) -> None:
    """Make a group that says nothing, and those above it, where there are none."""
    location.put_all_if_absent(dict.fromkeys(layout.document_keys(path), UNFINISHED))

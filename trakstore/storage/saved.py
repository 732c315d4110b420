"""Arrays of a saved matrix, scores or a gram: made, read, and checked by their group's document.

The group's document, which has a checksum and is written last, holds the shape of each array; an
array's own document follows from that, as a column's follows from its split's.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import zarr
from numpy.typing import NDArray

from trakstore.documents import NAME, each, fields, made_by, one_of, text, whole
from trakstore.errors import DamagedError, SpecMismatchError
from trakstore.storage import layout
from trakstore.storage.arrays import StrictStore, array_document, fill_value
from trakstore.storage.checks import Finding
from trakstore.storage.checksums import intact, tail_of
from trakstore.storage.chunks import ChunkForm
from trakstore.storage.locations import Location
from trakstore.storage.splits import attributes, group_document

__all__ = [
    "ARRAYS",
    "UNFINISHED",
    "SavedArray",
    "check_saved",
    "pending_arrays",
    "pending_document",
]

_WRITE_ALL: Any = {"write_empty_chunks": True}  # else a chunk of fill values would look unwritten
UNFINISHED = group_document({})  # the group's document until all is saved
_MOST_MISSING = 1000  # chunks that are told one by one
ARRAYS = "arrays"  # the attribute that holds them,
PENDING = "pending"  # and the one that says what is being saved, until then


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
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dimensions: tuple[str, ...]

    @classmethod
    def from_dict(cls, told: dict[str, Any]) -> SavedArray:
        """From an entry of the group's document.

        Raises
        ------
        DamagedError
            When a field has a value that no writer gives it, or the sizes do not fit together.
        """
        array = cls(**fields(told, _ARRAY, what="a saved array"))
        if not _fits_together(array):
            raise DamagedError(
                f"a saved array {array.name} of shape {array.shape} in chunks of {array.chunks} is "
                f"none that any writer makes"
            )
        return array

    def to_dict(self) -> dict[str, Any]:
        """A dict for JSON."""
        return asdict(self)

    @property
    def document(self) -> bytes:
        """The array's metadata document."""
        return array_document(self.dtype, self.shape, self.chunks, self.dimensions)

    def create(self, location: Location, group: str) -> None:
        """Make the array anew, without what an earlier, stopped save left in its place."""
        path = f"{group}/{self.name}"
        location.delete(location.find(path, lambda _: True))
        parts = group.split("/")
        for above in ("/".join(parts[:n]) for n in range(1, len(parts) + 1)):
            location.put_if_absent(layout.document_key(above), UNFINISHED)
        location.put({layout.document_key(path): self.document})

    def open(self, location: Location, group: str, mode: Literal["r", "r+"] = "r") -> Any:
        """The zarr array; reading a chunk that is missing raises a :class:`DamagedError`."""
        store = location.store
        if mode == "r":
            store = StrictStore(store, self.document)
        path = f"{group}/{self.name}"
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
        grid = [-(-n // c) for n, c in zip(self.shape, self.chunks, strict=True)]
        for at in map(partial(np.unravel_index, shape=grid), range(math.prod(grid))):
            key = f"{path}/c/{'/'.join(map(str, at))}"
            known.add(key)
            finding = self._wrong(location, key)
            missing += finding is not None and finding.kind == "missing"
            if missing > len(there) + _MOST_MISSING:
                yield Finding(
                    "missing", f"{path}/c", f"has most of {math.prod(grid)} chunks missing"
                )
                return
            if finding is not None:
                yield finding
        for key in there:
            if key not in known and not key.endswith(".partial"):
                yield Finding("foreign", key, "is not part of the array; remove it by hand")

    def _wrong(self, location: Location, key: str) -> Finding | None:
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
}
_MOST_CHUNKS, _MOST_CHUNK_BYTES = 2**22, 2**30


def _fits_together(array: SavedArray) -> bool:
    """Whether an array has a chunk shape, and no more and no larger chunks than writers make."""
    shape, chunks = array.shape, array.chunks
    return (
        1 <= len(shape) == len(chunks) == len(array.dimensions) <= 3
        and min(chunks) > 0
        and math.prod(-(-n // c) for n, c in zip(shape, chunks, strict=True)) <= _MOST_CHUNKS
        and ChunkForm.of(array.document).most <= _MOST_CHUNK_BYTES
    )


def pending_document(token: str, arrays: list[SavedArray]) -> bytes:
    """The group's document while what ``token`` names is saved to these arrays."""
    told = {"of": token, ARRAYS: [array.to_dict() for array in arrays]}
    return group_document({PENDING: told})


def pending_arrays(document: bytes | None, token: str) -> list[SavedArray]:
    """The arrays that a save of what ``token`` names was stopped on; none of another, or whole."""
    if document in (None, UNFINISHED):
        return []
    told = attributes(document or b"", "a saved matrix").get(PENDING, {})
    arrays = told.get(ARRAYS, []) if told.get("of") == token else []
    return [SavedArray.from_dict(one) for one in arrays]


def check_saved(
    location: Location, group: str, read: Callable[[str, dict[str, Any]], object] | None = None
) -> Iterator[Finding]:
    """What is wrong with a saved matrix; nothing is while its save has not ended.

    ``read``, given the group and its attributes, raises for those that it cannot be read with.
    """
    key = layout.document_key(group)
    try:
        document = location.get(key)
        if document in (None, UNFINISHED):  # it is not there for readers either
            return
        found = attributes(document or b"", group)
        if PENDING in found:
            return
        arrays = each(made_by(SavedArray.from_dict, "an array"))(found[ARRAYS])
        if read is not None:
            read(group, found)
    except (DamagedError, SpecMismatchError, KeyError, ValueError) as error:
        yield Finding("document", key, f"is damaged ({error})")
        return
    if group_document(found) != document:
        yield Finding("document", key, "is not as it was written")
    for array in arrays:
        yield from array.check(location, group)

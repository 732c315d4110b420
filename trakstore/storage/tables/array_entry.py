"""Entry of a saved array in its group's document: shape, chunks, and the checksums that end them."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Self

from numpy.typing import NDArray

from trakstore.documents import NAME, each, fields, made_by, one_of, text, whole
from trakstore.errors import DamagedError
from trakstore.storage import layout
from trakstore.storage.arrays import array_document
from trakstore.storage.backends.chunks import TAIL, ChunkForm, cut, grid
from trakstore.storage.columns import column_dtype


@dataclass(frozen=True)
class ArrayEntry:
    """One array of a saved table, as its group's document describes it.

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


_SIZES = each(whole(0, 2**53))
_ARRAY = {
    "name": text(NAME),
    "dtype": one_of(
        *("float64", "float32", "float16", "int64", "int32", "int16"),
        *("uint64", "uint32", "uint8", "bool"),
        "str",
    ),
    "shape": _SIZES,
    "chunks": _SIZES,
    "dimensions": each(text()),
    "tails": made_by(partial(base64.b64decode, validate=True), "checksums in base64"),
}
_MOST_CHUNKS, _MOST_CHUNK_BYTES = 2**22, 2**30


def _fits_together(array: ArrayEntry) -> bool:
    """Tell whether an array has a chunk shape, and no more and no larger chunks than writers make."""
    shape, chunks = array.shape, array.chunks
    return (
        1 <= len(shape) == len(chunks) == len(array.dimensions) <= 3
        and min(chunks) > 0
        and array.chunk_count <= _MOST_CHUNKS
        and array.form.most <= _MOST_CHUNK_BYTES
    )

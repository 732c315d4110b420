"""Arrays of a saved table: made, read, and checked by their group's document.

The group's document, which has a checksum and is written last, holds the shape of each array, and the
checksum that ends each of its chunks, so that no other chunk is taken for it. An array's own document
follows from that, as a column's follows from its split's.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import DamagedError
from trakstore.storage import layout
from trakstore.storage.backends.chunks import TAIL, cut, intact
from trakstore.storage.backends.location import Location
from trakstore.storage.block_checks import Finding
from trakstore.storage.tables.array_entry import ArrayEntry
from trakstore.storage.tables.table_array import TableArray

_ENDS_AT_ONCE = 4096  # chunks whose ends are read at once
_WRITE_AT_ONCE = 8  # chunks that are written at once
_MOST_MISSING = 1000  # chunks that are told one by one


@dataclass(frozen=True)
class SavedArray(ArrayEntry):
    """An array of a saved table that is made, written, read and checked in its place."""

    def sealed(self, location: Location, group: str) -> Self:
        """Return the same with the checksums of its chunks as they are now: all of them are written.

        Raises
        ------
        DamagedError
            When a chunk is not there.
        """
        tails_now: list[bytes] = []
        keys = self.keys(group)
        while some := list(itertools.islice(keys, _ENDS_AT_ONCE)):
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

"""A saved array, read part by part, each chunk compared with the checksum in its group's document."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from trakstore.errors import DamagedError, LocationError, error_context
from trakstore.planning import span_of
from trakstore.quantities import is_whole, shown
from trakstore.storage import layout
from trakstore.storage.backends.chunks import TAIL, grid, intact
from trakstore.storage.backends.location import Location
from trakstore.storage.backends.together import together
from trakstore.storage.tables.array_entry import ArrayEntry

_TASK_BYTES = 64_000_000  # of a lazy block
READ_AT_ONCE = 16  # chunks that are read at once


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
    saved : ArrayEntry
        The array by the group's document.
    """

    location: Location
    path: str
    saved: ArrayEntry

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
                low, high = span_of(wanted)
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
        while some := list(itertools.islice(chunks, READ_AT_ONCE)):
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

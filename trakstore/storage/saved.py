"""Whether a saved score matrix is whole: its documents, and every chunk of its arrays."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from trakstore.errors import DamagedError
from trakstore.storage import layout
from trakstore.storage.arrays import array_document
from trakstore.storage.checks import TAIL, Finding, intact
from trakstore.storage.locations import Location
from trakstore.storage.splits import attributes, group_document

__all__ = ["check_saved"]


def check_saved(location: Location, path: str) -> Iterator[Finding]:
    """What is wrong with the group at ``path``; nothing is while its save has not ended."""
    key = layout.document_key(path)
    document = location.get(key)
    if document is None:  # a save that was stopped: it is not there for readers either
        return
    try:
        if group_document(attributes(document, path)) != document:
            yield Finding("document", key, "is not as it was written")
    except DamagedError as error:
        yield Finding("document", key, str(error))
    lengths: dict[str, set[int]] = {}
    for name in location.names(path):
        if name == "zarr.json":
            continue
        array = _Array.read(location, f"{path}/{name}")
        if array is None:
            key = layout.document_key(f"{path}/{name}")
            yield Finding("document", key, "is missing, damaged, or not as it was written")
            continue
        for dimension, length in zip(array.dimensions, array.shape, strict=True):
            lengths.setdefault(dimension, set()).add(length)
        yield from array.check(location)
    for dimension, found in lengths.items():
        if len(found) > 1:
            what = f"arrays have {' and '.join(map(str, sorted(found)))} along {dimension}"
            yield Finding("document", path, what)


@dataclass(frozen=True)
class _Array:
    """An array as its own document says."""

    path: str
    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dimensions: tuple[str, ...]

    @classmethod
    def read(cls, location: Location, path: str) -> _Array | None:
        """From its document; None where that is not what :func:`array_document` would write."""
        document = location.get(layout.document_key(path))
        try:
            told: dict[str, Any] = json.loads(document or b"")
            dtype = "str" if told["data_type"] == "string" else told["data_type"]
            chunks = tuple(told["chunk_grid"]["configuration"]["chunk_shape"])
            shape, dimensions = tuple(told["shape"]), tuple(told["dimension_names"])
            same = document == array_document(dtype, shape, chunks, dimensions)
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
        return cls(path, dtype, shape, chunks, dimensions) if same and all(chunks) else None

    def check(self, location: Location) -> Iterator[Finding]:
        """Every chunk of the grid is there and sound."""
        grid = [range(-(-n // c)) for n, c in zip(self.shape, self.chunks, strict=True)]
        keys = [f"{self.path}/c/{'/'.join(map(str, at))}" for at in itertools.product(*grid)]
        for key in keys:
            value = location.get(key)
            if value is None:
                yield Finding("missing", key, "is missing")
            elif not intact(value) or not self._whole(value):
                yield Finding("damaged", key, "does not have its checksum or its length")
        known = {*keys, layout.document_key(self.path)}
        for key in location.find(self.path, lambda one: one not in known):
            if not key.endswith(".partial"):
                yield Finding("foreign", key, "is not part of the array; remove it by hand")

    def _whole(self, value: bytes) -> bool:
        count = math.prod(self.chunks)
        if self.dtype == "str":  # vlen-utf8 begins with the number of strings
            return int.from_bytes(value[:4], "little") == count
        return len(value) == count * np.dtype(self.dtype).itemsize + TAIL

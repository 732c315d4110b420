"""Bytes that a chunk can have: compared with its array's document before memory is taken."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numcodecs import Zstd

from trakstore.errors import DamagedError
from trakstore.storage.checksums import TAIL

__all__ = ["ChunkForm", "check_size", "unpacked"]

_COUNT = 4  # bytes of the number of strings, and of the length of each
ID_BYTES, IDS_BYTES = 2**10, 2**24  # of strings in a chunk: each, and beyond that all
_ZSTD = b"\x28\xb5\x2f\xfd"


@dataclass(frozen=True)
class ChunkForm:
    """How the bytes of an array's chunks follow from their values.

    Attributes
    ----------
    count : int
        Values of a chunk.
    itemsize : int or None
        Bytes of a value; None for strings.
    compressed : bool
        Whether the values are compressed by zstd.
    """

    count: int
    itemsize: int | None
    compressed: bool = False

    @classmethod
    def of(cls, document: bytes) -> ChunkForm:
        """From the metadata document of an array that trakstore made."""
        told: dict[str, Any] = json.loads(document)
        shape, dtype = told["chunk_grid"]["configuration"]["chunk_shape"], told["data_type"]
        itemsize = None if dtype == "string" else np.dtype(dtype).itemsize
        return cls(math.prod(shape), itemsize, any(one["name"] == "zstd" for one in told["codecs"]))

    @property
    def most(self) -> int:
        """Bytes of a chunk at most."""
        if self.itemsize is None:
            return _COUNT + self.count * (_COUNT + ID_BYTES) + IDS_BYTES + TAIL
        size = self.count * self.itemsize
        # what zstd makes of noise is a little longer than it was
        return size + (size // 128 + 1024 if self.compressed else 0) + TAIL

    def check(self, key: str, value: Any) -> None:
        """Raise a :class:`DamagedError` for bytes that cannot be a chunk's, or would be too many."""
        if self.itemsize is None:
            count = int.from_bytes(bytes(value[:_COUNT]), "little")
            if count != self.count:
                raise DamagedError(f"{key} says it holds {count:,} strings, not {self.count:,}")
            if len(value) < _COUNT * (1 + count) + TAIL:
                raise DamagedError(f"{key} is too short for {count:,} strings")
        elif self.compressed:
            _check_content(key, bytes(value[:18]), self.count * self.itemsize)
        elif len(value) != self.most:
            raise DamagedError(f"{key} has {len(value):,} bytes of {self.most:,}")


def check_size(key: str, size: int, most: int | None) -> None:
    """Raise a :class:`DamagedError` where a value is larger than it can be."""
    if most is not None and size > most:
        raise DamagedError(f"{key} has {size:,} bytes; at most {most:,} can be right")


def unpacked(key: str, content: bytes, size: int) -> bytes:
    """Bytes that zstd packed, if they say that they are so many; else a :class:`DamagedError`."""
    _check_content(key, content[:18], size)
    try:
        found = bytes(Zstd().decode(content))
    except (RuntimeError, ValueError) as error:
        raise DamagedError(f"{key} cannot be decompressed ({error})") from error
    if len(found) != size:
        raise DamagedError(f"{key} holds {len(found):,} bytes, not {size:,}")
    return found


def _check_content(key: str, head: bytes, wanted: int) -> None:
    told = _content_size(head)
    if told != wanted:
        said = "does not say how many" if told is None else f"says {told:,}"
        raise DamagedError(f"{key} {said} bytes it holds, not compressed; {wanted:,} are right")


def _content_size(head: bytes) -> int | None:
    """Bytes that a zstd frame says it holds (RFC 8878, section 3.1.1.1); None where it does not.

    Examples
    --------
    >>> _content_size(bytes(Zstd().encode(bytes(1000))))
    1000
    >>> _content_size(b"no frame") is None
    True
    """
    if len(head) < 6 or not head.startswith(_ZSTD):
        return None
    flags = head[4]
    single = flags >> 5 & 1
    width = (single, 2, 4, 8)[flags >> 6]
    start = 5 + (1 - single) + (0, 1, 2, 4)[flags & 3]
    if not width or len(head) < start + width:
        return None
    return int.from_bytes(head[start : start + width], "little") + (256 if width == 2 else 0)

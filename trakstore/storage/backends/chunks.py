"""The one codec of chunks: values to bytes and back, with the crc32c that ends every chunk.

Columns of blocks, markers, masks and tables all go through :class:`ChunkForm`. The last four bytes of
a chunk, its tail, are the checksum of the rest, little-endian; what commits a chunk holds its tail. A
store may come from a stranger: the size of a value is compared with what its array's document allows
before memory is taken, for it or for what it unpacks to.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from crc32c import crc32c
from numcodecs import VLenUTF8, Zstd
from numpy.typing import NDArray

from trakstore.errors import DamagedError

TAIL = 4  # bytes
# The crc32c of any bytes followed by their own crc32c is this constant.
_SOUND = crc32c(bytes(TAIL))
_COUNT = 4  # bytes of the number of strings, and of the length of each
ID_BYTES, IDS_BYTES = 2**10, 2**24  # of strings in a chunk: each, and beyond that all
_ZSTD = b"\x28\xb5\x2f\xfd"
_ZSTD_HEAD = 18  # bytes of the longest header of a frame


def tail_of(content: bytes) -> bytes:
    """Return the checksum of some bytes, as it stands behind them."""
    return crc32c(content).to_bytes(TAIL, "little")


def intact(value: bytes | NDArray[np.uint8]) -> bool:
    """Tell whether a value ends in the checksum of the rest, without a copy.

    Examples
    --------
    >>> intact(b"chunk" + tail_of(b"chunk")), intact(b"chink" + tail_of(b"chunk")), intact(b"")
    (True, False, False)
    """
    return len(value) >= TAIL and crc32c(cast("bytes", value)) == _SOUND


def fill_value(dtype: str) -> Any:
    """Return the value of entries that were never written: NaN, -1 (0 if unsigned), False or ``""``."""
    if dtype == "str":
        return ""
    return {"f": float("nan"), "i": -1, "u": 0, "b": False}[np.dtype(dtype).kind]


def grid(shape: tuple[int, ...], chunks: tuple[int, ...]) -> tuple[int, ...]:
    """Return the number of chunks along each dimension of an array.

    Examples
    --------
    >>> grid((10, 4), (4, 4))
    (3, 1)
    """
    return tuple(-(-size // step) for size, step in zip(shape, chunks, strict=True))


def cut(
    shape: tuple[int, ...], chunks: tuple[int, ...]
) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
    """Yield the numbers of each chunk of an array, row by row, and the part of the array in it.

    Examples
    --------
    >>> list(cut((5,), (3,)))
    [((0,), (slice(0, 3, None),)), ((1,), (slice(3, 5, None),))]
    """
    for numbers in itertools.product(*map(range, grid(shape, chunks))):
        at = zip(numbers, chunks, shape, strict=True)
        yield numbers, tuple(slice(i * step, min((i + 1) * step, size)) for i, step, size in at)


@dataclass(frozen=True)
class ChunkForm:
    """Shape and encoding of the chunks of one array.

    Attributes
    ----------
    shape : tuple of int
        Values of a chunk along each dimension; chunks at the edge of an array are as large.
    dtype : str
        NumPy's name, or ``"str"``.
    compressed : bool
        Whether the values are compressed by zstd.
    """

    shape: tuple[int, ...]
    dtype: str
    compressed: bool = False

    @classmethod
    def of(cls, document: bytes) -> ChunkForm:
        """Return the form of an array made by trakstore, from its metadata document."""
        known: dict[str, Any] = json.loads(document)
        shape, dtype = known["chunk_grid"]["configuration"]["chunk_shape"], known["data_type"]
        compressed = any(one["name"] == "zstd" for one in known["codecs"])
        return cls(tuple(shape), "str" if dtype == "string" else dtype, compressed)

    @property
    def values(self) -> np.dtype[Any]:
        """The dtype of the values in memory."""
        return np.dtype(np.dtypes.StringDType()) if self.dtype == "str" else np.dtype(self.dtype)

    @property
    def size(self) -> int:
        """Bytes of a chunk's values in memory; a guess for strings."""
        return math.prod(self.shape) * self.values.itemsize

    @property
    def most(self) -> int:
        """Most bytes of a stored chunk."""
        if self.dtype == "str":
            count = math.prod(self.shape)
            return _COUNT + count * (_COUNT + ID_BYTES) + IDS_BYTES + TAIL
        # Noise, which features resemble, becomes a little longer when it is compressed.
        return self.size + (self.size // 128 + 1024 if self.compressed else 0) + TAIL

    def encode(self, values: NDArray[Any]) -> tuple[bytes, bytes]:
        """Return the two parts of the chunk that holds ``values``: its content and its tail.

        A chunk is always stored whole: beyond the end of an array fill values follow, as with any Zarr
        writer. So the tail of the last chunk depends on the length of the array.
        """
        whole = values.astype(self.values, copy=False)
        if values.shape != self.shape:
            whole = np.full(self.shape, fill_value(self.dtype), self.values)
            whole[tuple(map(slice, values.shape))] = values
        if self.dtype == "str":
            content = bytes(VLenUTF8().encode(whole))
        else:
            content = whole.astype(self.values.newbyteorder("<"), copy=False).tobytes()
        if self.compressed:
            content = bytes(Zstd(level=1, checksum=False).encode(content))
        return content, tail_of(content)

    def decode(self, key: str, chunk: bytes | NDArray[np.uint8]) -> NDArray[Any]:
        """Return the values of a chunk; numbers that are not compressed are a view of its bytes.

        The checksum is not compared: see :func:`intact`.

        Raises
        ------
        DamagedError
            When the bytes cannot be those of a chunk of this form.
        """
        self.check(key, chunk)
        try:
            if self.dtype == "str":
                texts = np.asarray(VLenUTF8().decode(bytes(chunk[:-TAIL])))
                return texts.astype(self.values).reshape(self.shape)
            stored = self.values.newbyteorder("<")
            if self.compressed:
                whole = np.empty(self.shape, stored)
                Zstd().decode(bytes(chunk[:-TAIL]), out=whole)
            else:
                whole = np.frombuffer(chunk, stored, math.prod(self.shape)).reshape(self.shape)
        except (ValueError, RuntimeError, TypeError, IndexError) as error:
            raise DamagedError(
                f"{key} cannot be decoded ({error}): its bytes are damaged"
            ) from error
        return whole.astype(self.values, copy=False)

    def check(self, key: str, chunk: bytes | NDArray[np.uint8]) -> None:
        """Raise a :class:`DamagedError` for bytes that cannot be a chunk's, or would be too many."""
        if self.dtype == "str":
            # The decoder would take memory for as many strings as the first bytes claim.
            count, wanted = int.from_bytes(bytes(chunk[:_COUNT]), "little"), math.prod(self.shape)
            if count != wanted:
                raise DamagedError(f"{key} says it holds {count:,} strings, not {wanted:,}")
            if len(chunk) < _COUNT * (1 + count) + TAIL:
                raise DamagedError(f"{key} is too short for {count:,} strings")
        elif self.compressed:
            content = _content_size(bytes(chunk[:_ZSTD_HEAD]))
            if content != self.size:
                says = "does not say how many" if content is None else f"says {content:,}"
                raise DamagedError(
                    f"{key} {says} bytes it holds, not compressed; {self.size:,} are right"
                )
        elif len(chunk) != self.most:
            raise DamagedError(f"{key} has {len(chunk):,} bytes of {self.most:,}")


def check_size(key: str, size: int, most: int | None) -> None:
    """Raise a :class:`DamagedError` where a value is larger than it can be."""
    if most is not None and size > most:
        raise DamagedError(f"{key} has {size:,} bytes; at most {most:,} can be right")


def _content_size(head: bytes) -> int | None:
    """Return the content size that a zstd frame declares (RFC 8878, 3.1.1.1); None if it has none.

    Examples
    --------
    >>> _content_size(bytes(Zstd().encode(bytes(1000))))
    1000
    >>> _content_size(b"no frame") is None
    True
    """
    if len(head) < 6 or not head.startswith(_ZSTD):
        return None
    # The descriptor's two highest bits give the width of the size. The next bit says that there is no
    # window descriptor before it, and the lowest two give the width of the dictionary's number.
    flags = head[4]
    single = flags >> 5 & 1
    width = (single, 2, 4, 8)[flags >> 6]
    start = 5 + (1 - single) + (0, 1, 2, 4)[flags & 3]
    if not width or len(head) < start + width:
        return None
    # A size of two bytes is stored less 256, since smaller ones take one byte.
    return int.from_bytes(head[start : start + width], "little") + (256 if width == 2 else 0)

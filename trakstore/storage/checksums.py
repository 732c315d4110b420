"""The crc32c that ends every stored chunk: four bytes, little-endian."""

from __future__ import annotations

import google_crc32c
import numpy as np
from numpy.typing import NDArray

__all__ = ["TAIL", "intact", "tail_of"]

TAIL = 4  # bytes
_SOUND = google_crc32c.value(bytes(TAIL))  # of anything that ends in its own checksum


def tail_of(content: bytes) -> bytes:
    """The checksum of some bytes, as it stands behind them."""
    return int(google_crc32c.value(content)).to_bytes(TAIL, "little")


def intact(value: bytes | NDArray[np.uint8]) -> bool:
    """Whether a value ends in the checksum of the rest; nothing is copied.

    Examples
    --------
    >>> intact(b"chunk" + tail_of(b"chunk")), intact(b"chink" + tail_of(b"chunk")), intact(b"")
    (True, False, False)
    """
    return len(value) >= TAIL and bool(google_crc32c.value(value) == _SOUND)

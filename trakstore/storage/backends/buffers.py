"""Arrays that chunks are read into, used again within one piece of work.

Processes that give freed memory back at once, as Dask's workers do, spend as much time on getting new
pages for each chunk as on reading it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

__all__ = ["chunk_buffer", "reused_buffers"]

_KEPT = 2  # the chunk that is worked on, and the one that is read


def _references(arrays: list[NDArray[np.uint8]], at: int) -> int:
    return sys.getrefcount(arrays[at])


_FREE = _references([np.empty(0, dtype=np.uint8)], 0)  # of one in a list; interpreters differ


class _Kept(threading.local):
    arrays: list[NDArray[np.uint8]] | None = None


_KEPT_HERE = _Kept()


@contextmanager
def reused_buffers() -> Iterator[None]:
    """Within, :func:`chunk_buffer` gives this thread arrays again that nobody looks at any more."""
    before, _KEPT_HERE.arrays = _KEPT_HERE.arrays, []
    try:
        yield
    finally:
        _KEPT_HERE.arrays = before


def chunk_buffer(size: int) -> NDArray[np.uint8]:
    """An array of ``size`` bytes, which may hold anything."""
    kept = _KEPT_HERE.arrays
    if kept is None:
        return np.empty(size, dtype=np.uint8)
    for at in range(len(kept)):
        if _references(kept, at) == _FREE and kept[at].nbytes == size:
            return kept[at]
    made = np.empty(size, dtype=np.uint8)
    kept.append(made)
    del kept[:-_KEPT]
    return made

"""Files as they lie in the memory that the system keeps them in, without a copy."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Since Linux 5.14, asks for all pages of a mapping at once, and tells of those that cannot be read.
_MADV_POPULATE_READ = 22


def mapped(handle: int, size: int) -> NDArray[np.uint8] | None:
    """Return the bytes of an open file, read-only, or None where it has to be read.

    The pages are the system's own: where the file is in memory, nothing is copied; else it is read
    here. They are given back with the last array that refers to them.

    Parameters
    ----------
    handle : int
        Descriptor of the file, which may be closed afterwards.
    size : int
        Bytes that it has to have.
    """
    advise = _madvise()
    if advise is None or os.fstat(handle).st_size != size:
        return None
    content = np.frombuffer(mmap.mmap(handle, size, prot=mmap.PROT_READ), np.uint8)
    # A disk reads the whole file at once, not a page after the other.
    os.posix_fadvise(handle, 0, size, os.POSIX_FADV_WILLNEED)
    # Whoever touches a page that cannot be read is killed by a signal, where a read would raise. So all
    # are asked for first, and used at once: what fails is told here, and what cannot be told is left.
    return content if advise(content.ctypes.data, size, _MADV_POPULATE_READ) == 0 else None


@cache
def _madvise() -> Any:
    """Find madvise(2), None on systems that do not have the advice."""
    if sys.platform != "linux":
        return None
    # Not mmap's method of that name, which holds the interpreter's lock while a disk is read.
    function = getattr(ctypes.CDLL(None), "madvise", None)
    if function is not None:
        function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function

"""Files as they lie in the memory that the system keeps them in, for compiled loops: without a copy.

The system is called from within the loops. Were it called from Python, threads that do little else
would wait for the interpreter's lock at each call, in all about as long as for the memory.
"""

from __future__ import annotations

import mmap
import os
import sys
from typing import Any, TypeAlias

import numba
import numpy as np
from numba.extending import intrinsic
from numpy.typing import NDArray

from trakstore.machine_code import compiled

Text: TypeAlias = NDArray[np.uint8]  # bytes of a path, of which the last is 0
_t: Any = numba.types


def _system(name: str, result: Any, *takes: Any) -> Any:
    return _t.ExternalFunction(name, result(*takes))


_open = _system("open", _t.intc, _t.uintp, _t.intc)
_openat = _system("openat", _t.intc, _t.intc, _t.uintp, _t.intc)
_lseek = _system("lseek", _t.intp, _t.intc, _t.intp, _t.intc)
_fadvise = _system("posix_fadvise", _t.intc, _t.intc, _t.intp, _t.intp, _t.intc)
_mmap = _system("mmap", _t.intp, _t.uintp, _t.uintp, _t.intc, _t.intc, _t.intc, _t.intp)
_madvise = _system("madvise", _t.intc, _t.intp, _t.uintp, _t.intc)
_munmap = _system("munmap", _t.intc, _t.intp, _t.uintp)
_close = _system("close", _t.intc, _t.intc)

maps_files = sys.platform == "linux"
# A link leads elsewhere, and a pipe would wait for a writer.
_FOLDER = (os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC) if maps_files else 0
_FILE = (os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC) if maps_files else 0
_READABLE, _SHARED = (mmap.PROT_READ, mmap.MAP_SHARED) if maps_files else (0, 0)
_WILL_NEED = os.POSIX_FADV_WILLNEED if maps_files else 0
# Since Linux 5.14, asks for all pages of a mapping at once, and tells of those that cannot be read.
_POPULATE_READ = 22


@compiled
def _pages(file: int, size: int) -> int:  # pragma: no cover
    # A disk reads the whole file at once, not a page after the other.
    _fadvise(file, 0, size, _WILL_NEED)
    place = _mmap(0, size, _READABLE, _SHARED, file, 0)
    # Whoever touches a page that cannot be read is killed by a signal, where a read would raise. So all
    # are asked for first, and used at once: what fails is told here, and what cannot be told is left.
    if place > 0 and _madvise(place, size, _POPULATE_READ) != 0:
        _munmap(place, size)
        return 0
    return int(max(0, place))


@compiled
def mapped(folder: Text, name: Text, size: int) -> int:  # pragma: no cover
    """Return the address of a file's bytes, read-only, or 0 where it has to be read.

    The pages are the system's own: where the file is in memory, nothing is copied; else it is read
    here. They are given back by :func:`unmapped`.

    Parameters
    ----------
    folder : ndarray of uint8
        Path of its folder, which must be no link itself.
    name : ndarray of uint8
        Its name there.
    size : int
        Bytes that it has to have.
    """
    at = _open(folder.ctypes.data, _FOLDER)
    if at < 0:
        return 0
    file = _openat(at, name.ctypes.data, _FILE)
    _close(at)
    if file < 0:
        return 0
    place = _pages(file, size) if _lseek(file, 0, os.SEEK_END) == size else 0
    _close(file)
    return place


@compiled
def unmapped(place: int, size: int) -> None:  # pragma: no cover
    """Give the pages at an address back."""
    _munmap(place, size)


def _pointing(_: Any, place: Any) -> Any:  # pragma: no cover
    """Take an address for a pointer."""

    def point(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.inttoptr(values[0], context.get_value_type(signature.return_type))

    return _t.voidptr(place), point


pointer: Any = intrinsic(_pointing)

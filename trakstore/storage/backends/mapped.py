"""Files as they lie in the memory that the system keeps them in, for compiled loops: without a copy.

Whoever touches a page that is not there is killed by a signal, where a read would raise. So all pages
are asked for first, and a lease keeps them: while a process has it, another one that would shorten the
file, or open it to write, waits. Our own writers never do: they put a new file in its place. A file
that can have no lease, such as one of another user or of a network, is left to a read.

The system is called from within the loops. Were it called from Python, threads that do little else
would wait for the interpreter's lock at each call, in all about as long as for the memory.
"""

from __future__ import annotations

import mmap
import os
import signal
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
_fcntl = _system("fcntl", _t.intc, _t.intc, _t.intc, _t.intp)
_close = _system("close", _t.intc, _t.intc)

maps_files = sys.platform == "linux"
# A link leads elsewhere, and a pipe would wait for a writer.
_FOLDER = (os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC) if maps_files else 0
_FILE = (os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC) if maps_files else 0
_READABLE, _SHARED = (mmap.PROT_READ, mmap.MAP_SHARED) if maps_files else (0, 0)
_WILL_NEED = os.POSIX_FADV_WILLNEED if maps_files else 0
# In <fcntl.h>. The one who has a lease is told of others that wait by a signal, by default one that
# ends the process; this one does nothing where no one asked for it.
_SET_LEASE, _TO_READ, _SET_SIGNAL = 1024, 0, 10
_SIGNAL = int(signal.SIGURG) if maps_files else 0
# Since Linux 5.14, asks for all pages of a mapping at once, and tells of those that cannot be read.
_POPULATE_READ = 22


@compiled
def _pages(file: int, size: int) -> int:  # pragma: no cover
    # A disk reads the whole file at once, not a page after the other.
    _fadvise(file, 0, size, _WILL_NEED)
    place = _mmap(0, size, _READABLE, _SHARED, file, 0)
    if place > 0 and _madvise(place, size, _POPULATE_READ) != 0:
        _munmap(place, size)
        return 0
    return int(max(0, place))


@compiled
def mapped(folder: Text, name: Text, size: int) -> tuple[int, int]:  # pragma: no cover
    """Return the address of a file's bytes, read-only, and the open file; 0 where it has to be read.

    The pages are the system's own: where the file is in memory, nothing is copied; else it is read
    here. Both are given back by :func:`unmapped`, soon, since others may wait for the file.

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
        return 0, 0
    file = _openat(at, name.ctypes.data, _FILE)
    _close(at)
    if file < 0:
        return 0, 0
    _fcntl(file, _SET_SIGNAL, _SIGNAL)
    place = 0
    if _fcntl(file, _SET_LEASE, _TO_READ) == 0 and _lseek(file, 0, os.SEEK_END) == size:
        place = _pages(file, size)
    if place == 0:
        _close(file)
    return place, file


@compiled
def unmapped(place: int, size: int, file: int) -> None:  # pragma: no cover
    """Give the pages at an address back, and the file, whose lease ends."""
    _munmap(place, size)
    _close(file)


def _pointing(_: Any, place: Any) -> Any:  # pragma: no cover
    """Take an address for a pointer."""

    def point(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.inttoptr(values[0], context.get_value_type(signature.return_type))

    return _t.voidptr(place), point


pointer: Any = intrinsic(_pointing)

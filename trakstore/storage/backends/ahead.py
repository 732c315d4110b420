"""Values that are read before they are needed, where a read goes to another machine.

Code that knows what it will read next says so with :func:`read_ahead`. Up to so many bytes are then
being read or waiting, and when one value is taken the next read begins.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from zarr.abc.buffer import Buffer

from trakstore.storage.backends.location import Location

AHEAD_BYTES = 64 * 2**20  # most bytes that are read ahead; values larger than this are not
_AT_ONCE = 256  # reads that run at once


_At: TypeAlias = tuple[Location, str]


@dataclass(frozen=True)
class Wanted:
    """A value that will be asked for.

    Attributes
    ----------
    location, key
        Place of the value.
    most : int
        Bytes that a right value can have at most.
    size : int
        Bytes that the value is expected to have.
    """

    location: Location
    key: str
    most: int
    size: int

    @property
    def at(self) -> _At:
        return self.location, self.key


class _Ahead:
    """Reads in the order in which they were wanted, ``most`` bytes of them at a time."""

    def __init__(self, wanted: Sequence[Wanted], most: int) -> None:
        # A value may be wanted several times: it is read once, and its room is freed after the last
        # use.
        self._uses = Counter(one.at for one in wanted)
        self._waiting = deque({one.at: one for one in wanted if one.size <= most}.values())
        self._begun: dict[_At, tuple[Future[Buffer | None], int]] = {}
        self._gate, self._room = asyncio.Semaphore(_AT_ONCE), most
        self._begin()

    def find(self, at: _At) -> Future[Buffer | None] | None:
        """Return the pending read of a value; None if it was not begun."""
        return self._begun[at][0] if at in self._begun else None

    def wants(self, at: _At) -> bool:
        """Tell whether a value will be asked for again."""
        return self._uses[at] > 0

    def leave(self, at: _At) -> None:
        """Count one use of a value; after its last use, further reads take its room."""
        self._uses[at] -= 1
        if self._uses[at] < 1 and at in self._begun:
            self._room += self._begun.pop(at)[1]
            self._begin()

    def end(self) -> None:
        """Cancel all reads."""
        # After an error there may be reads that nobody will wait for.
        for future, _ in self._begun.values():
            future.cancel()
        self._begun.clear()

    def _begin(self) -> None:
        """Begin the reads for which there is room, in one call, which is far cheaper than many."""
        some: dict[Location, dict[str, Wanted]] = {}
        while self._waiting and self._waiting[0].size <= self._room:
            one = self._waiting.popleft()
            if self.wants(one.at):
                self._room -= one.size
                some.setdefault(one.location, {})[one.key] = one
        # By location, so that each location's loop is woken once for all of its reads.
        for location, wanted in some.items():
            begun = location.begin({key: one.most for key, one in wanted.items()}, self._gate)
            self._begun |= {(location, key): (begun[key], one.size) for key, one in wanted.items()}


class _Here(threading.local):
    ahead: _Ahead | None = None


_HERE = _Here()


@contextmanager
def read_ahead(wanted: Sequence[Wanted], most: int = AHEAD_BYTES) -> Iterator[None]:
    """Within, have :func:`read_key` in this thread return these values from reads begun in advance.

    Parameters
    ----------
    wanted : sequence of Wanted
        Values in the order in which they will be read, each as often as it will be. Values larger than
        ``most`` are not read ahead.
    most : int
        Bytes that are held at once.
    """
    before, own = _HERE.ahead, _Ahead(wanted, most)
    _HERE.ahead = own
    try:
        yield
    finally:
        _HERE.ahead = before
        own.end()


def is_wanted(location: Location, key: str) -> bool:
    """Tell whether this thread announced that it will read a value."""
    return _HERE.ahead is not None and _HERE.ahead.wants((location, key))


def read_key(location: Location, key: str, most: int) -> bytes | NDArray[np.uint8] | None:
    """Return the bytes at a key, or None: read ahead if announced, otherwise read now.

    Raises
    ------
    DamagedError
        When there are more than ``most``.
    """
    # Reads are kept by thread, since each of two tasks that run at once announces its own.
    ahead, at = _HERE.ahead, (location, key)
    if ahead is None:
        return location.get_chunk(key, most)
    try:
        if (future := ahead.find(at)) is not None:
            with suppress(Exception):  # the read below is tried again, and shows what is wrong
                value = future.result()
                return None if value is None else value.to_bytes()
        return location.get_chunk(key, most)
    finally:
        ahead.leave(at)

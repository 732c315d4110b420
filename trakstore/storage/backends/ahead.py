"""Values that are read before they are asked for, where a read is a way to another machine.

Code that knows what it will read next says so with :func:`read_ahead`. As many bytes as it allows are
on their way or wait, and the next follow as soon as one is taken.
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

AHEAD_BYTES = 64 * 2**20  # that are read ahead at most: larger values do not wait for the way
_AT_ONCE = 256  # reads that are under way


_At: TypeAlias = tuple[Location, str]


@dataclass(frozen=True)
class Wanted:
    """A value that will be asked for.

    Attributes
    ----------
    location, key
        Place of the value.
    most : int
        Bytes that can be right.
    size : int
        Bytes that are expected.
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
        # A value may be wanted several times: it is read once, and its room is free after the last use.
        self._uses = Counter(one.at for one in wanted)
        self._waiting = deque({one.at: one for one in wanted if one.size <= most}.values())
        self._begun: dict[_At, tuple[Future[Buffer | None], int]] = {}
        self._gate, self._room = asyncio.Semaphore(_AT_ONCE), most
        self._begin()

    def find(self, at: _At) -> Future[Buffer | None] | None:
        """Return a value that is on its way; None for one that was not begun."""
        return self._begun[at][0] if at in self._begun else None

    def wants(self, at: _At) -> bool:
        """Tell whether a value will be asked for again."""
        return self._uses[at] > 0

    def leave(self, at: _At) -> None:
        """Count one use of a value; after the last the next ones take its room."""
        self._uses[at] -= 1
        if self._uses[at] < 1 and at in self._begun:
            self._room += self._begun.pop(at)[1]
            self._begin()

    def end(self) -> None:
        """Leave everything."""
        # An error in between may leave reads that nobody will wait for.
        for future, _ in self._begun.values():
            future.cancel()
        self._begun.clear()

    def _begin(self) -> None:
        """Begin what there is room for: in one go, which costs far less than one by one."""
        some: dict[Location, dict[str, Wanted]] = {}
        while self._waiting and self._waiting[0].size <= self._room:
            one = self._waiting.popleft()
            if self.wants(one.at):
                self._room -= one.size
                some.setdefault(one.location, {})[one.key] = one
        # By location, so that each wakes its loop once for all of them.
        for location, wanted in some.items():
            begun = location.begin({key: one.most for key, one in wanted.items()}, self._gate)
            self._begun |= {(location, key): (begun[key], one.size) for key, one in wanted.items()}


class _Here(threading.local):
    ahead: _Ahead | None = None


_HERE = _Here()


@contextmanager
def read_ahead(wanted: Sequence[Wanted], most: int = AHEAD_BYTES) -> Iterator[None]:
    """Within, :func:`read_key` in this thread has these values, or waits for what is on its way.

    Parameters
    ----------
    wanted : sequence of Wanted
        Values in the order in which they will be asked for, each as often as it will be. What is larger
        than ``most`` is not read ahead.
    most : int
        Bytes that are held at a time.
    """
    before, own = _HERE.ahead, _Ahead(wanted, most)
    _HERE.ahead = own
    try:
        yield
    finally:
        _HERE.ahead = before
        own.end()


def is_wanted(location: Location, key: str) -> bool:
    """Tell whether this thread said that it will read a value."""
    return _HERE.ahead is not None and _HERE.ahead.wants((location, key))


def read_key(location: Location, key: str, most: int) -> bytes | NDArray[np.uint8] | None:
    """Return the bytes at a key, or None: as they were read ahead, else as they are now.

    Raises
    ------
    DamagedError
        When there are more than ``most``.
    """
    # Reads are kept by thread: two tasks that run at once each say what they will read themselves.
    ahead, at = _HERE.ahead, (location, key)
    if ahead is None:
        return location.get_chunk(key, most)
    try:
        if (future := ahead.find(at)) is not None:
            with suppress(Exception):  # it is read once more, which tells what is wrong
                value = future.result()
                return None if value is None else value.to_bytes()
        return location.get_chunk(key, most)
    finally:
        ahead.leave(at)

"""Signs of life of ranks that share a model: one that hangs, or is lost, ends the others.

A rank in a collective operation would wait for a stopped one until the timeout of its process group,
half an hour, which must be longer than any batch. So each rank has a thread that counts up a number in
the store through which the ranks found each other, whatever its other threads compute, and checks the
numbers of the others.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from threading import Event, Thread
from time import monotonic
from typing import Any

import torch.distributed as dist

from trakstore.errors import TrakStoreError
from trakstore.features.sharding.lockstep import RankGoneError

__all__ = ["Heartbeats", "telling_failures", "watched_ranks"]

_BEAT = 5.0  # seconds
# Seconds without a sign after which a rank counts as lost. A thread may wait for Python's lock, as
# while another one reads a large pickle, but hardly so long.
_SILENT = 30.0
# Seconds that ranks have to end by themselves after one of them failed.
_GRACE = 10.0
_OVER = b"over"
_AGAIN = "what was committed is kept; run again, with any number of ranks"


class Heartbeats:
    """Notes of ranks to each other in a store: that they are alive, and why they failed.

    Parameters
    ----------
    store : torch.distributed.Store
        Store with a connection of its own, since operations wait for those of other threads on the same
        one.
    rank, ranks : int
    """

    def __init__(self, store: Any, rank: int, ranks: int) -> None:
        self._store, self._rank = store, rank
        # Each rank watches the next one, and tells all: if all watched all, many ranks would keep the
        # store busy. Some stopped rank always comes after one that is not stopped.
        self._next = (rank + 1) % ranks
        self._beats = 0
        # Last sign of the next rank, and the local time of its arrival: clocks of machines are not
        # compared.
        self._seen: tuple[bytes, float] | None = None
        self._talked = 0.0  # when this rank heard of the others last
        self._failure: str | None = None
        self._silence: str | None = None

    @classmethod
    def of_launched(cls) -> Heartbeats:
        """Join those of the ranks that a launcher started."""
        store = dist.TCPStore(  # type: ignore[attr-defined]
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=_SILENT),
        )
        # torchrun may start ranks once more, and keeps the store.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        own = dist.PrefixStore(f"trakstore/{attempt}", store)  # type: ignore[attr-defined]
        return cls(own, int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))

    def beat(self) -> None:
        """Tell the others that this rank is alive."""
        self._beats += 1
        self._store.set(f"beat/{self._rank}", str(self._beats))

    def end(self) -> None:
        """Tell the others to expect no more signs of this rank."""
        self._store.set(f"beat/{self._rank}", _OVER)

    def fail(self, error: Exception) -> None:
        """Tell the others of this rank's error, unless one of them failed before."""
        self._tell(f"rank {self._rank} failed: {type(error).__name__}: {error}")

    def _tell(self, message: str) -> None:
        if self.failure() is None:
            self._store.set("failure", message)

    def failure(self) -> str | None:
        """Return the message about a rank that failed or is lost, if there is one."""
        told = self._get("failure")
        return None if told is None else told.decode()

    def silence(self, now: float) -> str | None:
        """Return a message if the next rank gave no sign of life for long, and tell the others.

        Before its first sign, none is expected.
        """
        sign = self._get(f"beat/{self._next}")
        if sign is None or sign == _OVER:
            return None
        if self._seen is None or sign != self._seen[0]:
            self._seen = sign, now
        if (silent := now - self._seen[1]) <= _SILENT:
            return None
        message = _silence(f"rank {self._next}", silent)
        self._tell(message)
        return message

    def _get(self, key: str) -> bytes | None:
        # Getting a missing value would wait for it.
        return bytes(self._store.get(key)) if self._store.check([key]) else None

    def talk(self, done: Event) -> None:
        """Give signs of life, and check those of the others, until this rank is done."""
        try:
            while not done.wait(_BEAT):
                self.beat()
                self._failure, self._silence = self.failure(), self.silence(monotonic())
                self._talked = monotonic()
            self.end()
        except RuntimeError:
            self._failure = f"the first rank of the sharded model is gone; {_AGAIN}"

    def watch(self, done: Event, lost: Callable[[str], None]) -> None:
        """Wait until this rank is done, or must end because another one failed or is lost.

        A separate thread talks to the store, since it waits for ever if a stopped rank hosts the store.
        """
        self._talked = monotonic()
        while not done.wait(_BEAT):
            silence, silent = self._silence, monotonic() - self._talked
            if silence is None and silent > _SILENT:
                silence = _silence("the first rank", silent)
            # A rank that learns of a failure in the ordinary way cleans up by itself.
            message = silence or (
                None if done.wait(_GRACE if self._failure else 0) else self._failure
            )
            if message is not None:
                lost(message)
                return


@contextmanager
def telling_failures() -> Iterator[None]:
    """Tell the other ranks of an error, and raise theirs if this rank was only left behind.

    If a rank fails, others that wait for it in an operation only learn that a connection was closed:
    the error that counts is the failed rank's.

    Raises
    ------
    TrakStoreError
        With the error of another rank.
    """
    hearts = Heartbeats.of_launched()
    try:
        yield
    except Exception as error:
        gone, told = isinstance(error, RankGoneError), None
        with suppress(RuntimeError):  # the store may be gone with another rank
            if gone or not isinstance(error, TrakStoreError):
                told = hearts.failure()
            if told is None and not gone:
                hearts.fail(error)
        if told is not None:
            raise TrakStoreError(told) from error
        raise


@contextmanager
def watched_ranks(lost: Callable[[str], None]) -> Iterator[None]:
    """Watch the other ranks that a launcher started from a thread, and have them watch this one.

    Parameters
    ----------
    lost : callable
        Called with a message when another rank is lost, or failed and this one did not end. It must end
        the process, since the thread that waits for the lost rank cannot be reached.
    """
    hearts, done = Heartbeats.of_launched(), Event()
    hearts.beat()
    talking = Thread(target=hearts.talk, args=(done,), name="heartbeats", daemon=True)
    watching = Thread(target=hearts.watch, args=(done, lost), name="watch of ranks", daemon=True)
    talking.start()
    watching.start()
    try:
        yield
    finally:
        done.set()
        watching.join()
        talking.join(_BEAT)  # it may wait for a store that does not answer


def _silence(who: str, seconds: float) -> str:
    return (
        f"{who} of the sharded model gave no sign of life for {seconds:.0f} s: it was stopped, or its "
        f"machine is lost; {_AGAIN}"
    )

"""Signs of life of ranks that share a model: one that hangs, or is lost, ends the others.

A rank that waits in a collective operation for one that has stopped would wait for the timeout of its
process group, which is half an hour: it must be longer than any batch. So each rank has a thread that
counts up a number in the store by which the ranks found one another, whatever its other threads compute
meanwhile, and looks at the numbers of the others.
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
# A rank counts as lost after so many seconds. A thread waits for Python's lock while another one reads
# a large pickle, for one, but hardly so long.
_SILENT = 30.0
# Seconds in which ranks end by themselves once one of them has failed.
_GRACE = 10.0
_OVER = b"over"
_AGAIN = "what was committed is kept; run again, with any number of ranks"


class Heartbeats:
    """Notes that ranks leave one another in a store: that they are alive, and why they failed.

    Parameters
    ----------
    store : torch.distributed.Store
        Operations wait for those of other threads on the same connection, so it has one of its own.
    rank, ranks : int
    """

    def __init__(self, store: Any, rank: int, ranks: int) -> None:
        self._store, self._rank = store, rank
        # Each looks after the next, and tells all: many ranks would keep the store busy otherwise. Of
        # those that are stopped there is always one behind a rank that is not.
        self._next = (rank + 1) % ranks
        self._beats = 0
        # The next one's last sign, and when it was new here: clocks of machines are not compared.
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
        """Return what was told of a rank that failed or is lost, if one is."""
        told = self._get("failure")
        return None if told is None else told.decode()

    def silence(self, now: float) -> str | None:
        """Say that the next rank gave no sign of life for long, if so, and tell the others.

        It is not expected to before its first one.
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
        # To get a value that is not there would wait for it.
        return bytes(self._store.get(key)) if self._store.check([key]) else None

    def talk(self, done: Event) -> None:
        """Give signs of life, and look for those of the others, until this rank is done."""
        try:
            while not done.wait(_BEAT):
                self.beat()
                self._failure, self._silence = self.failure(), self.silence(monotonic())
                self._talked = monotonic()
            self.end()
        except RuntimeError:
            self._failure = f"the first rank of the sharded model is gone; {_AGAIN}"

    def watch(self, done: Event, lost: Callable[[str], None]) -> None:
        """Wait until this rank is done, or must end since another one failed or is lost.

        Another thread talks: where the store is that of a stopped rank, it waits for ever.
        """
        self._talked = monotonic()
        while not done.wait(_BEAT):
            silence, silent = self._silence, monotonic() - self._talked
            if silence is None and silent > _SILENT:
                silence = _silence("the first rank", silent)
            # A rank that is told of a failure in the ordinary way cleans up after itself.
            message = silence or (
                None if done.wait(_GRACE if self._failure else 0) else self._failure
            )
            if message is not None:
                lost(message)
                return


@contextmanager
def telling_failures() -> Iterator[None]:
    """Tell the other ranks of an error, and raise theirs where this one was only left behind.

    A rank that waits in an operation with another when that fails is told that a connection was
    closed; the error that counts is the other's.

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
        Is given a message when another rank is lost, or failed and this one did not end with it. It has
        to end the process: the thread that waits for the lost rank cannot be reached.
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

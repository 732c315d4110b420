"""Work beside the computation: the next batch is read, and the last block written, meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Generic, TypeVar

__all__ = ["OneBehind", "ReadAhead"]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class ReadAhead(Generic[_Item, _Result]):
    """Reader of items, the next of them in the background while one is used.

    Whoever stops early (Ctrl-C, an error) does not wait for a slow read that nobody needs any more.

    Parameters
    ----------
    read : callable
        Function that gives the result for an item.

    Attributes
    ----------
    waited : float
        Seconds in which the caller had nothing to use yet.
    """

    def __init__(self, read: Callable[[_Item], _Result]) -> None:
        self.read, self.waited = read, 0.0
        self._coming: tuple[_Item, Future[_Result]] | None = None

    def through(
        self, items: Sequence[_Item], then: _Item | None = None
    ) -> Iterator[tuple[_Item, _Result]]:
        """Yield each item with its result; at the last one, ``then`` is read for the next call.

        Examples
        --------
        >>> list(ReadAhead(abs).through([-1, -2], then=-3))
        [(-1, 1), (-2, 2)]
        """
        for item, following in zip(items, [*items, then][1:], strict=True):
            ready = self._take(item)
            if following is not None:
                self._coming = following, _reading(self.read, following)
            yield item, ready

    def forget(self) -> None:
        """Read anew what is read for the next call: results are others by now."""
        self._coming = None

    def _take(self, item: _Item) -> _Result:
        """Return the result for an item; if another one was expected, it is read from now on."""
        coming, self._coming = self._coming, None
        if coming is None or coming[0] != item:
            coming = item, _reading(self.read, item)
        began = time.monotonic()
        result = coming[1].result()
        self.waited += time.monotonic() - began
        return result


def _reading(read: Callable[[_Item], _Result], item: _Item) -> Future[_Result]:
    # A thread of its own, and not a pool's: Python waits for those of a pool when it ends, so that
    # Ctrl-C would wait for a slow read.
    future: Future[_Result] = Future()

    def work() -> None:
        try:
            future.set_result(read(item))
        except BaseException as error:  # noqa: BLE001  (it is raised where the result is taken)
            future.set_exception(error)

    threading.Thread(target=work, name="trakstore-read", daemon=True).start()
    return future


class OneBehind:
    """One job at a time in the background; the next waits for it, and so does the end.

    An error of a job is raised by the next call. At the end of a ``with`` block the last job has ended,
    also when it is left by an exception, which is then the one that is raised.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="trakstore-write")
        self._job: Future[Any] | None = None

    def submit(self, job: Callable[[], Any]) -> None:
        """Start a job when the one before is done."""
        self.wait()
        self._job = self._thread.submit(job)

    def wait(self) -> None:
        """Wait until nothing is under way; raise what the job raised."""
        job, self._job = self._job, None
        if job is not None:
            job.result()

    def __enter__(self) -> OneBehind:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self._thread.shutdown()

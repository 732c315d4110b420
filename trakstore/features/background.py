"""Work beside the computation: the next batch is read, and the last block written, meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

__all__ = ["OneBehind", "read_ahead"]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def read_ahead(
    read: Callable[[_Item], _Result], items: Sequence[_Item]
) -> Iterator[tuple[_Item, _Result]]:
    """Each item with what ``read`` gives for it; the next is read while one is used.

    Examples
    --------
    >>> list(read_ahead(abs, [-1, -2]))
    [(-1, 1), (-2, 2)]
    """
    with ThreadPoolExecutor(1, thread_name_prefix="trakstore-read") as thread:
        coming = thread.submit(read, items[0])
        for i, item in enumerate(items):
            ready = coming.result()
            if i + 1 < len(items):
                coming = thread.submit(read, items[i + 1])
            yield item, ready


class OneBehind:
    """Runs one job in the background; the next waits for it, and so does the end.

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
        """Until nothing is under way; raises what the job raised."""
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

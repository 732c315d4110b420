"""Questions in progress: some on threads at once, others waiting, each with a deadline."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator

from trakstore.serve.answer import Answer
from trakstore.serve.bodies import BadRequestError
from trakstore.serve.current_query import CurrentQuery
from trakstore.serve.daemon_threads import DaemonThreads
from trakstore.serve.limits import Limits
from trakstore.serve.metrics import Metrics
from trakstore.serve.question import Question
from trakstore.serve.store_watch import NAME as WATCH

NAME = "answer"  # name of the threads


def is_answering() -> bool:
    """Tell whether a thread is answering or opening the store, or is about to end that."""
    names = (f"{NAME}-", WATCH)
    return any(one.name.startswith(names) for one in threading.enumerate())


class _GivenUpError(Exception):
    """Nobody waits for the answer any more."""


class Work:
    """Threads that answer questions.

    Parameters
    ----------
    current : CurrentQuery
    limits : Limits
    metrics : Metrics
    """

    def __init__(self, current: CurrentQuery, limits: Limits, metrics: Metrics) -> None:
        self.current, self.limits, self.metrics = current, limits, metrics
        self._threads = DaemonThreads(limits.threads, NAME)

    def close(self) -> None:
        """Accept no more questions; those in progress end by themselves."""
        self._threads.close()

    async def stages(self, question: Question, stages: int | None) -> AsyncIterator[Answer]:
        """Yield the stages of an answer as they come.

        Raises
        ------
        BadRequestError
            503: too many questions wait, or the answer takes too long.
        """
        if self.metrics.waiting >= self.limits.waiting:
            raise BadRequestError(503, "too many questions wait: ask again in a while")
        began, gone = time.monotonic(), threading.Event()
        loop, coming = asyncio.get_running_loop(), asyncio.Queue[Answer | BaseException | None]()

        def go_on() -> None:
            if gone.is_set():
                raise _GivenUpError

        def ended(error: BaseException | None) -> None:
            self.metrics.waiting -= 1
            coming.put_nowait(error)

        def answer() -> None:
            end: BaseException | None = None
            try:
                go_on()
                with self.current.taken(go_on) as query:
                    for one in query.stages(question, stages=stages, go_on=go_on):
                        loop.call_soon_threadsafe(coming.put_nowait, one)
            # Any error is raised where the answer is awaited.
            except BaseException as error:  # noqa: BLE001
                end = error
            if not loop.is_closed():
                loop.call_soon_threadsafe(ended, end)

        self.metrics.waiting += 1
        self._threads.submit(answer)
        try:
            # Each wait has its own deadline, since several tasks may read the lines of one stream. A
            # slow reader holds up nobody: its answer is ready, and no longer counts.
            while True:
                left = began + self.limits.seconds - time.monotonic()
                try:
                    one = await asyncio.wait_for(coming.get(), max(left, 0.001))
                except TimeoutError:
                    raise BadRequestError(
                        503, f"the answer takes more than {self.limits.seconds:g} seconds"
                    ) from None
                if one is None:
                    break
                if isinstance(one, BaseException):
                    raise one
                yield one
            self.metrics.answered(time.monotonic() - began)
        finally:
            # A thread that is working sees this before its next step, and counts until then.
            gone.set()
            if self._threads.cancel(answer):
                ended(None)

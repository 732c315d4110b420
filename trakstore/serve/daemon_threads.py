"""Threads that run functions in turn, and do not hold up the end of the process."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable


class DaemonThreads:
    """A pool of threads for which, unlike those of ``concurrent.futures``, no process waits at its end.

    A cancelled function leaves the queue at once, with everything that it holds.

    Parameters
    ----------
    count : int
        Functions that run at once.
    name : str
        Beginning of the threads' names.
    """

    def __init__(self, count: int, name: str) -> None:
        self._count, self._name = count, name
        self._queue: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._closed = False

    def submit(self, function: Callable[[], None]) -> None:
        """Run a function, which must not raise, as soon as a thread is free."""
        with self._changed:
            self._queue.append(function)
            if len(self._threads) < self._count:
                name = f"{self._name}-{len(self._threads)}"
                self._threads.append(threading.Thread(target=self._run, name=name, daemon=True))
                self._threads[-1].start()
            self._changed.notify()

    def cancel(self, function: Callable[[], None]) -> bool:
        """Cancel a function, and tell whether no thread had begun it."""
        with self._changed:
            if function not in self._queue:
                return False
            self._queue.remove(function)
            return True

    def close(self) -> None:
        """Begin no further functions."""
        with self._changed:
            self._closed = True
            self._queue.clear()
            self._changed.notify_all()

    def _run(self) -> None:
        while (function := self._next()) is not None:
            function()
            del function  # and the question that it holds

    def _next(self) -> Callable[[], None] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            return None if self._closed else self._queue.popleft()

"""The query that answers questions, which is replaced as a whole when the store changes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from trakstore.serve.query import Query

_STEP = 0.1  # seconds between checks whether a waiting question is still wanted


class CurrentQuery:
    """A query of the store as it is, or as it was when it could last be opened.

    During the replacement two queries are in memory, if the memory limit has room for both. Otherwise
    the old one's kernels are dropped first, and questions wait for the new one.

    Parameters
    ----------
    query : Query
    """

    def __init__(self, query: Query) -> None:
        self._query, self._pausing = query, False
        self._taken: list[Query] = []  # an entry for each question in progress
        self._changed = threading.Condition()
        # True while the store has changed, but cannot be opened.
        self.is_stale = False

    @property
    def query(self) -> Query:
        """The present query, to look at; a question uses :meth:`taken`."""
        return self._query

    @contextmanager
    def taken(self, go_on: Callable[[], None]) -> Iterator[Query]:
        """Lend the query to one question, which it answers to the end.

        Parameters
        ----------
        go_on : callable
            Called while waiting; it raises when nobody waits for the answer any more.
        """
        with self._changed:
            while self._pausing:
                self._changed.wait(_STEP)
                go_on()
            query = self._query
            self._taken.append(query)
        try:
            yield query
        finally:
            with self._changed:
                self._taken.remove(query)
                self._changed.notify_all()

    def renew(self) -> None:
        """Replace the query by one of the present store.

        Raises
        ------
        TrakStoreError
            When the store cannot be opened; nothing is changed then.
        """
        old = self._query
        # A long question may still use the query before: a third one would be in memory.
        self._wait_until(lambda: all(one is old for one in self._taken))
        new = old.renewed()
        with nullcontext() if old.fits_twice else self._paused():
            if self._pausing:
                old.let_go()
            new.prepare()
            with self._changed:
                self._query = new

    def _wait_until(self, true: Callable[[], bool]) -> None:
        with self._changed:
            self._changed.wait_for(true)

    @contextmanager
    def _paused(self) -> Iterator[None]:
        """Wait until no question is in progress, while new ones wait."""
        self._pausing = True
        try:
            self._wait_until(lambda: not self._taken)
            yield
        finally:
            with self._changed:
                self._pausing = False
                self._changed.notify_all()

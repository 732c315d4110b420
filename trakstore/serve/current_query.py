"""The query that questions get, which is changed for another one as a whole."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from trakstore.serve.query import Query

_STEP = 0.1  # seconds after which a question that waits looks whether anybody waits for it


class CurrentQuery:
    """A query of a store as it is, or was when it could be opened last.

    Two queries are in memory while one is changed for the other, where the memory limit has room for
    both. Else the kernels of the old one are let go first, and questions wait for the new one.

    Parameters
    ----------
    query : Query
    """

    def __init__(self, query: Query) -> None:
        self._query, self._pausing = query, False
        self._taken: list[Query] = []  # once for each question under way
        self._changed = threading.Condition()
        # True while the store has changed, and cannot be opened as it is now.
        self.is_stale = False

    @property
    def query(self) -> Query:
        """The query as it is now, to look at; who asks it takes it."""
        return self._query

    @contextmanager
    def taken(self, go_on: Callable[[], None]) -> Iterator[Query]:
        """Give the query to one question, which is answered by it to the end.

        Parameters
        ----------
        go_on : callable
            Called while it waits: it raises where nobody waits for the answer any more.
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
        """Change the query for one of the store as it is now.

        Raises
        ------
        TrakStoreError
            The store cannot be opened as it is now: nothing is changed.
        """
        old = self._query
        # A question of minutes may still be at the one before: three would be in memory.
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
        """Wait until no question is under way; others wait meanwhile."""
        self._pausing = True
        try:
            self._wait_until(lambda: not self._taken)
            yield
        finally:
            with self._changed:
                self._pausing = False
                self._changed.notify_all()

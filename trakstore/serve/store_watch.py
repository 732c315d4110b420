"""Watch over a store that is served: a thread that sees its changes."""

from __future__ import annotations

import logging
import threading
import time

from trakstore.errors import TrakStoreError
from trakstore.serve.current_query import CurrentQuery

log = logging.getLogger("trakstore")

NAME = "store-watch"  # of the thread
# Seconds between two looks at a store on a local disk, and at one that costs a request for each split.
NEAR, FAR = 2.0, 30.0
_AGAIN = 5.0  # and after an attempt that failed, at least
# Looks take a fiftieth of the time at most, and attempts to open a store that fail a twentieth.
_LOOKS, _ATTEMPTS = 50, 20


class StoreWatch:
    """A thread that changes the query of a service for another one where the store has changed.

    Parameters
    ----------
    current : CurrentQuery
    every : float, optional
        Seconds between two looks; 2 for a local store, else 30. Looks that take long are fewer.
    """

    def __init__(self, current: CurrentQuery, every: float | None = None) -> None:
        near = current.query.store.location.near
        self._current, self._every = current, every or (NEAR if near else FAR)
        self._ended, self._told = threading.Event(), ""
        self._thread = threading.Thread(target=self._run, name=NAME, daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def close(self) -> None:
        """Look no more; a store that is just being opened is not waited for."""
        self._ended.set()
        self._thread.join(1)

    def look(self) -> float:
        """Look once, and return the seconds until the next look.

        Whatever is in the way, the query stays as it is: the log says why, and the service that it is
        not of the store as it is now. What is not ready yet is tried again.
        """
        began = opening = time.monotonic()
        try:
            changed = not self._current.query.is_current()
            opening = time.monotonic()
            if changed:
                self._current.renew()
                log.info("the store has changed: answers are of it as it is now")
        except Exception as error:  # noqa: BLE001 the thread goes on, and all that it met is told
            self._tell(error)
            self._current.is_stale = True
            return max(self._every, _AGAIN, _ATTEMPTS * (time.monotonic() - began))
        self._current.is_stale, self._told = False, ""
        return max(self._every, _LOOKS * (opening - began))

    def _tell(self, error: Exception) -> None:
        """Log why the store cannot be opened, once."""
        if str(error) == self._told:
            return
        self._told = str(error)
        known = isinstance(error, TrakStoreError)
        log.warning(
            "the store has changed, and cannot be opened as it is now: %s; answers are of it as it was",
            error,
            exc_info=None if known else error,
        )

    def _run(self) -> None:
        pause = self._every
        try:
            # Models that are loaded are not warm yet: a new sample is tried before the first one comes.
            self._current.query.prepare()
        except Exception:
            log.exception("a new sample could not be tried")
        while not self._ended.wait(pause):
            pause = self.look()

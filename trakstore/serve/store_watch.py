"""Watch over the store of a service: a thread that notices its changes."""

from __future__ import annotations

import logging
import threading
import time

from trakstore.errors import TrakStoreError
from trakstore.serve.current_query import CurrentQuery

log = logging.getLogger("trakstore")

NAME = "store-watch"  # name of the thread
# Seconds between two checks of a store on a local disk, and of one that costs a request a split.
NEAR, FAR = 2.0, 30.0
_AGAIN = 5.0  # least seconds before the next attempt after a failure
# Checks take at most a fiftieth of the time, and attempts to open a store that fails a twentieth.
_LOOKS, _ATTEMPTS = 50, 20


class StoreWatch:
    """A thread that replaces the query of a service when the store has changed.

    Parameters
    ----------
    current : CurrentQuery
    every : float, optional
        Seconds between two checks; 2 for a local store, else 30. Slow checks are rarer.
    """

    def __init__(self, current: CurrentQuery, every: float | None = None) -> None:
        near = current.query.store.location.near
        self._current, self._every = current, every or (NEAR if near else FAR)
        self._ended, self._told = threading.Event(), ""
        self._thread = threading.Thread(target=self._run, name=NAME, daemon=True)

    def start(self) -> None:
        """Start checking."""
        self._thread.start()

    def close(self) -> None:
        """Stop checking; a store that is just being opened is not waited for."""
        self._ended.set()
        self._thread.join(1)

    def look(self) -> float:
        """Check once, and return the seconds until the next check.

        If anything fails, the query stays as it is: the log says why, and the service reports that it
        is not of the present store. The next check tries again.
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
            # Loaded models are not warm yet: a new sample is tried before the first one is asked about.
            self._current.query.prepare()
        except Exception:
            log.exception("a new sample could not be tried")
        while not self._ended.wait(pause):
            pause = self.look()

"""HTTP connections that have to send the head of a request in time."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 15.0


class DeadlineProtocol(H11Protocol):
    """Connection that is closed when the head of a request does not come whole in time.

    Without it a few thousand connections that send a byte now and then would keep all others out: the
    service's own limits of time begin with the body.
    """

    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Take bytes; the deadline is of the whole head, and does not move with each of them."""
        super().data_received(data)
        # Between requests nothing is waited for here: uvicorn closes connections that are kept alive.
        if self.conn.their_state is not h11.IDLE:
            self._end_wait()
        elif self._waiting is None:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._end_wait()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._waiting = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _end_wait(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
        self._waiting = None

"""HTTP connections on which the head of a request must arrive completely, and in time."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from trakstore.serve.reply_headers import HEADERS

HEAD_SECONDS = 15.0
_NO_HTTP = json.dumps({"error": "the request is not valid HTTP/1.1"}).encode()


class DeadlineProtocol(H11Protocol):
    """Connection that is closed if the head of a request does not arrive completely in time.

    Without this, a few thousand connections that send a byte now and then would keep all others out:
    the service's own time limits begin with the body, and end with the answer. The same time is given
    to the rest of a body that was answered before it had arrived.
    """

    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Receive bytes; the deadline is for the whole head, and does not move with each of them."""
        super().data_received(data)
        # Idle connections are not handled here: uvicorn closes those that are kept alive.
        if self.conn.their_state is h11.IDLE or self._is_answered_early():
            self._wait()
        else:
            self._end_wait()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """Refuse what is not HTTP like any bad request; in the middle of an answer, end that."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            headers = {
                **HEADERS,
                "content-type": "application/json",
                "content-length": str(len(_NO_HTTP)),
                "connection": "close",
            }
            events = [
                h11.Response(status_code=400, headers=[*headers.items()], reason=b"Bad Request"),
                h11.Data(data=_NO_HTTP),
                h11.EndOfMessage(),
            ]
            self.transport.write(b"".join(self.conn.send(one) or b"" for one in events))
        self.transport.close()

    def on_response_complete(self) -> None:
        """Begin to wait for the rest of the body, if there is one."""
        super().on_response_complete()
        if self._is_answered_early():
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._end_wait()
        super().connection_lost(exc)

    def _is_answered_early(self) -> bool:
        """Tell whether the body is still coming after its answer; bytes reset uvicorn's own timer."""
        return self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY

    def _wait(self) -> None:
        if self._waiting is None:
            self._waiting = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _end_wait(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
        self._waiting = None

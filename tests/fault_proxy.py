"""A small HTTP proxy on loopback that injects the failures of networks and object storage."""

from __future__ import annotations

import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import urlsplit

__all__ = ["FAULTS", "Fault", "FaultProxy", "Request", "fault_proxy", "share_of_requests"]

Fault = Literal["500", "503", "reset", "lost", "late", "truncated", "denied", "lacking"]
FAULTS: tuple[Fault, ...] = ("500", "503", "reset", "lost", "late", "truncated")

_ERRORS = {
    "500": (500, "InternalError", "We encountered an internal error."),
    "503": (503, "SlowDown", "Please reduce your request rate."),
    "lacking": (501, "NotImplemented", "A header implies functionality that is not implemented"),
    "denied": (403, "AccessDenied", "Access Denied"),
}


@dataclass(frozen=True)
class Request:
    """What came in; ``create`` if it was a conditional write."""

    method: str
    path: str
    size: int
    create: bool


@dataclass
class FaultProxy:
    """Forwards to ``upstream``, but for what ``choose`` gives a fault for.

    Faults: a reply of 500 or 503; the connection reset before the request is forwarded (``reset``)
    or after (``lost``: it had its effect); the reply ``late``, after ``delay`` seconds;
    ``truncated`` in the midst of its body (``lost`` if it has none); ``denied``; ``lacking``, as of a
    service that does not have such requests.
    """

    upstream: str
    choose: Callable[[Request], Fault | None]
    delay: float = 1.0
    url: str = ""
    requests: list[Request] = field(default_factory=list)
    injected: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next_fault(self, request: Request) -> Fault | None:
        with self.lock:
            self.requests.append(request)
            fault = self.choose(request)
            if fault:
                self.injected[fault] += 1
        return fault


def share_of_requests(share: float, seed: int) -> Callable[[Request], Fault | None]:
    """Any of the faults that pass, on a share of all requests."""
    chance = random.Random(seed)
    return lambda _: chance.choice(FAULTS) if chance.random() < share else None


@contextmanager
def fault_proxy(
    upstream: str, choose: Callable[[Request], Fault | None], delay: float = 1.0
) -> Iterator[FaultProxy]:
    """Run a proxy."""
    proxy = FaultProxy(upstream, choose, delay)
    handler = type("Handler", (_Handler,), {"proxy": proxy})
    with _Server(("127.0.0.1", 0), handler) as server:
        proxy.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            server.shutdown()
            thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def shutdown_request(self, request: Any) -> None:
        """Close at once: with a lingering time of 0 that is a reset."""
        self.close_request(request)

    def handle_error(self, *_: Any) -> None:
        """Clients that went away are meant."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultProxy

    def handle_one_request(self) -> None:
        self.close_connection = True  # unless a request was served
        with suppress(ConnectionError):
            super().handle_one_request()

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        create = "If-None-Match" in self.headers
        fault = self.proxy.next_fault(Request(self.command, self.path, len(body), create))
        if fault in _ERRORS:
            self._reply(*_error(fault))
        elif fault == "reset":
            self._reset()
        else:
            status, headers, content = self._forward(body)
            if fault == "late":
                time.sleep(self.proxy.delay)
            if fault == "lost" or (fault == "truncated" and not content):
                self._reset()
            else:
                kept = len(content) // 2 if fault == "truncated" else len(content)
                self._reply(status, headers, content, kept)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _serve

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(urlsplit(self.proxy.upstream).netloc, timeout=60)
        try:
            connection.request(self.command, self.path, body, dict(self.headers))
            reply = connection.getresponse()
            return reply.status, reply.getheaders(), reply.read()
        finally:
            connection.close()

    def _reply(
        self, status: int, headers: list[tuple[str, str]], content: bytes, kept: int | None = None
    ) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("connection", "content-length", "transfer-encoding"):
                self.send_header(name, value)
        length = len(content)
        if self.command == "HEAD":
            length = int(dict(headers).get("Content-Length", 0))
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(content[:kept])
        if kept is not None and kept < len(content):
            self.close_connection = True

    def _reset(self) -> None:
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """Nothing."""


def _error(fault: str) -> tuple[int, list[tuple[str, str]], bytes]:
    status, code, message = _ERRORS[fault]
    body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return status, [("Content-Type", "application/xml")], body.encode()

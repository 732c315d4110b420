"""The server: the address at which it listens, and its end."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from trakstore.errors import LocationError
from trakstore.serve.access import Access
from trakstore.serve.current_query import CurrentQuery
from trakstore.serve.header_deadline import DeadlineProtocol
from trakstore.serve.limits import Limits
from trakstore.serve.query import Query
from trakstore.serve.routes import service
from trakstore.serve.store_watch import StoreWatch

_GRACE = 10  # seconds that questions in progress get when the server is asked to end
_CONNECTIONS = 2000


class _Server(uvicorn.Server):
    """A server that ends, rather than raises the signal again, once it was asked to."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        names = (signal.SIGINT, signal.SIGTERM)
        before = {name: signal.signal(name, self.handle_exit) for name in names}
        try:
            yield
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)


def listen(host: str, port: int) -> socket.socket:
    """Bind an address.

    Raises
    ------
    LocationError
        When the address cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    taken = socket.socket(family, socket.SOCK_STREAM)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((host.strip("[]"), port))
    except (OSError, OverflowError) as error:
        taken.close()
        raise LocationError(
            f"cannot listen at {host}:{port} ({error}): choose another --port"
        ) from None
    return taken


def address_of(taken: socket.socket, host: str) -> str:
    """Return the URL at which to ask."""
    port = taken.getsockname()[1]
    return f"http://[{host.strip('[]')}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(
    query: Query,
    taken: socket.socket,
    access: Access,
    limits: Limits,
    version: str,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Answer requests until SIGINT or SIGTERM, with ten more seconds for those in progress.

    When the store changes, later questions are answered from the changed store.
    """
    current = CurrentQuery(query)
    watch = StoreWatch(current)
    config = uvicorn.Config(
        service(current, access, limits, version),
        http=DeadlineProtocol,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        limit_concurrency=_CONNECTIONS,
        backlog=_CONNECTIONS,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=_GRACE,
    )
    server = _Server(config)
    # From here on early requests wait, instead of being refused.
    taken.listen(_CONNECTIONS)
    ready()
    watch.start()
    server.run(sockets=[taken])
    watch.close()

"""The Dask cluster that does the work, where there is one: its workers, its memory, its failures."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import Any

import dask
from dask.base import get_scheduler

from trakstore.errors import LocationError, MemoryLimitError, TrakStoreError
from trakstore.planning import human_bytes

_CLOSED = (
    "the Dask client is closed: make a new one, or work on threads of this process "
    "(dask.config.set(scheduler='threads'))"
)
ATTEMPTS = 3
# Bytes that a worker's interpreter and libraries take.
OWN_BYTES = 200_000_000
# Share of its memory beyond which Dask pauses a worker.
USABLE = 0.8


def chosen_scheduler() -> Any:
    """Return the function with which Dask would compute now; None for its own default.

    Raises
    ------
    RuntimeError
        When Dask is configured for a client that is gone.
    """
    # To look for a client Dask imports distributed, which takes as long as a small command. If nobody
    # has imported it, there is no client.
    if "distributed" not in sys.modules and not dask.config.get("scheduler", None):
        return None
    return get_scheduler()


def active_client() -> Any:
    """Return the Dask client that ``dask.compute`` would use now, or None.

    Raises
    ------
    LocationError
        When it is closed, or its scheduler no longer answers.
    """
    # Importing it takes long, and whoever has a client has imported it.
    if "distributed" not in sys.modules:
        return None
    try:
        client = getattr(chosen_scheduler(), "__self__", None)
    except RuntimeError as error:
        # Dask is configured for a client that is gone.
        raise LocationError(_CLOSED) from error
    if not isinstance(client, sys.modules["distributed"].Client):
        return None
    if client.status in ("closed", "closing"):
        raise LocationError(_CLOSED)
    if client.status == "connecting" and client.scheduler_comm is None:
        raise _lost(client)
    return client


def workers_of(client: Any) -> dict[str, dict[str, Any]]:
    """Return the scheduler's facts about each worker, by address.

    Raises
    ------
    LocationError
        When the scheduler does not answer, or has no workers.
    """
    with cluster_errors(client):
        workers: dict[str, dict[str, Any]] = client.scheduler_info(n_workers=-1).get("workers", {})
    if client.status != "running":
        raise _lost(client)
    return workers


def worker_memory(client: Any) -> int | None:
    """Return the bytes that a task may take in the smallest worker; None if no worker has a limit.

    Raises
    ------
    MemoryLimitError
        When a worker has no more memory than it needs for itself.
    """
    limits = {name: worker.get("memory_limit") for name, worker in workers_of(client).items()}
    known = {name: int(limit) for name, limit in limits.items() if limit}
    if not known:
        return None
    name = min(known, key=known.__getitem__)
    if known[name] <= OWN_BYTES:
        raise MemoryLimitError(
            f"the Dask worker {name} has {human_bytes(known[name])} of memory, of which it needs "
            f"{human_bytes(OWN_BYTES)} for itself: start workers with more (memory_limit=)"
        )
    # A task may run in any worker, so that the smallest one decides.
    return int(USABLE * (known[name] - OWN_BYTES))


def compute_on(client: Any, build: Callable[[], Any]) -> Any:
    """Compute the delayed value that ``build`` makes.

    It is built and computed again if workers died with all copies of the data sent to them.

    Raises
    ------
    MemoryLimitError
        When workers die each time.
    LocationError
        When the scheduler is lost.
    """
    from distributed import KilledWorker
    from distributed.client import FuturesCancelledError

    with cluster_errors(client):
        for attempt in range(ATTEMPTS):
            # Built anew each time, since the value that was sent died with the workers.
            future = client.compute(build())
            try:
                return future.result()
            except (KilledWorker, FuturesCancelledError, CancelledError):
                if attempt == ATTEMPTS - 1 or client.status != "running":
                    raise
            finally:
                # After Ctrl-C tasks would still run. A future that is done is not affected.
                future.cancel()
    raise AssertionError


@contextmanager
def cluster_errors(client: Any) -> Iterator[None]:
    """Replace Dask's errors by one clear error, when workers or the scheduler are lost."""
    from distributed import KilledWorker
    from distributed.comm.core import CommClosedError

    try:
        yield
    except TrakStoreError:
        raise
    except KilledWorker as error:
        raise MemoryLimitError(
            f"Dask workers died over the same work again and again, {error.last_worker.address} last: "
            f"mostly of too little memory; give a smaller memory limit (memory_limit=, "
            f"--memory-limit), or start workers with more"
        ) from error
    except (CancelledError, CommClosedError, TimeoutError, OSError) as error:
        if client.status == "running" and not isinstance(error, CancelledError | CommClosedError):
            raise
        raise _lost(client) from error


def _lost(client: Any) -> LocationError:
    address = getattr(client.scheduler, "address", None) or "its address"
    return LocationError(
        f"the Dask scheduler at {address} was lost: what is saved is kept; start it again, make a new "
        f"client, and the same call or command goes on"
    )


@contextmanager
def listening(
    client: Any, topic: str | None, finished: Callable[[int], None] | None
) -> Iterator[None]:
    """Call ``finished`` with the number in each event that workers log on a topic."""
    if topic is None or finished is None:
        yield
        return
    client.subscribe_topic(topic, lambda event: finished(event[1]))
    try:
        yield
    finally:
        if client.status == "running":
            client.unsubscribe_topic(topic)

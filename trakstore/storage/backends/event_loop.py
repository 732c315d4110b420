"""The event loop in which stores do their work: zarr's own, in a thread of its own.

Connections of a store belong to the loop that made them. zarr reads and writes arrays of the same
stores in its own loop, so that reads and writes of whole keys must run there too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

# No public module of zarr has its loop, or a way to run something in it.
from zarr.core import sync as zarr_sync

from trakstore.errors import NO_THREADS, LocationError, lacks_threads

T = TypeVar("T")

# asyncio keeps no reference to its tasks: without one here, a task may be collected before it ends.
_UNDER_WAY: set[asyncio.Future[Any]] = set()


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in the loop, wait for it, and return its result.

    Raises
    ------
    LocationError
        When the system gives this process no more threads, and so no loop.
    """
    try:
        return zarr_sync.sync(work)
    except RuntimeError as error:
        if not lacks_threads(error):
            raise
        work.close()
        _forget_loop()
        raise LocationError(NO_THREADS) from error


def begin(
    calls: Mapping[str, Callable[[], Coroutine[Any, Any, T]]], gate: asyncio.Semaphore
) -> dict[str, Future[T]]:
    """Begin coroutines in the loop, without waiting for them.

    All are handed over in one call, since waking the loop for each takes far longer.

    Parameters
    ----------
    calls : mapping of str to callable
        Functions that give coroutines, by key.
    gate : asyncio.Semaphore
        Limits how many are under way at once.

    Returns
    -------
    A future for each key. A call that is cancelled before its turn never begins.
        One for each key. What is cancelled before its turn is never begun.
    """
    futures = {key: Future[T]() for key in calls}

    async def wait_and_work(key: str) -> T | None:
        async with gate:
            return None if futures[key].cancelled() else await calls[key]()

    def start() -> None:
        for key, future in futures.items():
            task = asyncio.ensure_future(wait_and_work(key))
            _UNDER_WAY.add(task)
            task.add_done_callback(partial(_hand_over, future))

    run(_running_loop()).call_soon_threadsafe(start)
    return futures


def _hand_over(future: Future[Any], task: asyncio.Future[Any]) -> None:
    """Set a future's result or error from its task, unless the future was cancelled."""
    _UNDER_WAY.discard(task)
    if task.cancelled():
        future.cancel()
    error = None if task.cancelled() else task.exception()
    if not future.set_running_or_notify_cancel():
        return
    if error is None:
        future.set_result(task.result())
    else:
        future.set_exception(error)


async def _running_loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


def _forget_loop() -> None:
    """Make zarr start a new loop at its next call.

    Otherwise it would wait for ever for the loop whose thread never started.
    """
    (loop,), (thread,) = zarr_sync.loop, zarr_sync.iothread
    if loop is not None and thread is not None and not thread.is_alive():
        zarr_sync.loop[0] = zarr_sync.iothread[0] = None
        loop.close()

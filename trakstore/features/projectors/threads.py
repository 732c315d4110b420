"""Samples of a batch shared among threads, each with a whole evaluation of its own.

A thread that forms a tile, adds it and drops it works in its core's cache and waits for nobody, while
torch would divide every single operation among threads. Within such a thread, torch uses one thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier

import torch

from trakstore.planning import ranges

__all__ = ["shared"]

_WORTH = 2e5  # nanoseconds of work that make up for waking threads


def shared(size: int, nanoseconds: float, work: Callable[[int, int], None]) -> None:
    """Run ``work(start, stop)`` on equal parts of ``range(size)``, one a thread.

    The parts depend on the size, the estimate and the number of threads alone, so that sums over parts
    have the same bits in every run.
    """
    threads = min(torch.get_num_threads(), size)
    if threads == 1 or nanoseconds < _WORTH:
        work(0, size)
        return
    step = -(-size // threads)
    pool = _pool(torch.get_num_threads(), os.getpid())  # threads do not survive a fork
    jobs = [pool.submit(_without_gradients, work, *part) for part in ranges(size, step)]
    for job in jobs:
        job.exception()  # all of them end before any error leaves
    for job in jobs:
        job.result()


def _without_gradients(work: Callable[[int, int], None], start: int, stop: int) -> None:
    with torch.no_grad():
        work(start, stop)


@cache
def _pool(threads: int, _process: int) -> ThreadPoolExecutor:
    pool = ThreadPoolExecutor(threads, thread_name_prefix="trakstore-projector")
    # Each job waits for all others, so that each runs in another thread, and sets the number of that
    # thread.
    together = Barrier(threads)

    def start() -> None:
        torch.set_num_threads(1)  # of this thread
        together.wait()

    for job in [pool.submit(start) for _ in range(threads)]:
        job.result()
    torch.set_num_threads(threads)  # what a thread sets is also for those that start later
    return pool

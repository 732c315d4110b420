"""Passes over rows as Dask tasks: one task for each range of rows, and a fixed tree of merges.

A pass over rows is divided into contiguous ranges of whole tiles: usually 8 to 32, up to 4,096 for very
long passes. The ranges and the order of the merges depend on the shape alone, so that a result does not
depend on the scheduler, the number of workers or their timing. Each range is one Dask task that loops
over tiles (read, product, running result) with BLAS on one thread.

While a task runs, BLAS is limited for the whole process, since OpenBLAS has no other limit. This is
worth it: on two CPUs, top-20 lists of 1,000 targets over 8 MB of features took 124 ms with BLAS on two
threads, and 83 to 86 ms in two tasks with BLAS on one thread.
"""

from __future__ import annotations

import math
import sys
import threading
import uuid
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any, TypeVar, cast

import dask
from dask import threaded
from dask.base import compute
from dask.callbacks import Callback
from dask.delayed import delayed
from dask.local import get_sync
from dask.system import CPU_COUNT
from threadpoolctl import ThreadpoolController

from trakstore.errors import TrakStoreError
from trakstore.passes.dask_cluster import (
    active_client,
    chosen_scheduler,
    compute_on,
    listening,
    workers_of,
)
from trakstore.passes.rows import Rows
from trakstore.planning import CHUNK_BYTES, ranges
from trakstore.storage.backends.buffers import reused_buffers

# Number of ranges of a long pass.
RANGES = 32
# Tiles in one range of a very long pass, of more than 32 * 128 tiles: about 1 GB of features.
RANGE_TILES = 128
# Most ranges of any pass.
MOST_RANGES = 4096
# Most results that wait to be merged: one on each level of the merge tree.
WAITING = MOST_RANGES.bit_length()
TILE_ROWS = 1024
R = TypeVar("R")


class _ProcessLimit:
    """One BLAS thread for this process, from the first thread that enters to the last that leaves.

    OpenBLAS's limit belongs to the process, and threadpoolctl lets only the thread that set it change
    it again. Since the first thread to enter is rarely the last to leave, a separate thread holds the
    limit. This costs 0.3 ms a pass, and 12 microseconds for each task to enter and leave.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0

    def enter(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._holder = ThreadPoolExecutor(1)
                self._limit = self._holder.submit(lambda: _limited().__enter__()).result()
            self._inside += 1

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                # An interpreter that is shutting down accepts no more work, and the limit need not be
                # lifted.
                with suppress(RuntimeError):
                    self._holder.submit(self._limit.__exit__, None, None, None).result()
                self._holder.shutdown()


def _limited() -> Any:
    return _libraries(len(sys.modules)).limit(limits=1, user_api="blas")


# Looking for libraries takes longer than a small task. The result is kept until the number of imported
# modules changes, since only an import can load another library.
@lru_cache(maxsize=1)
def _libraries(_module_count: int) -> ThreadpoolController:
    """Find the loaded BLAS libraries; repeated only after an import."""
    return ThreadpoolController()


_PROCESS_LIMIT = _ProcessLimit()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Within, limit BLAS to one thread; safe to enter from many threads at once."""
    _PROCESS_LIMIT.enter()
    try:
        # If BLAS uses OpenMP, the limit belongs to each thread. Otherwise this changes nothing.
        with _limited():
            yield
    finally:
        _PROCESS_LIMIT.leave()


def tile_rows(rows: Rows) -> int:
    """Return the rows of one tile: one chunk, or as many whole chunks as fit 1024 rows and 8 MB."""
    return tile_height(rows.chunk_rows, rows.dtype.itemsize * math.prod(rows.shape[1:]))


def tile_height(chunk_rows: int, row_bytes: int) -> int:
    """Return the rows of one tile, from the rows of a chunk and the bytes of a row."""
    fitting = min(TILE_ROWS, CHUNK_BYTES // max(1, row_bytes))
    return chunk_rows * max(1, fitting // chunk_rows)


def tile_ranges(start: int, stop: int, step: int) -> list[tuple[int, int]]:
    """Return the tiles of a range of rows, each of ``step`` rows but the last."""
    return [(start + low, start + high) for low, high in ranges(stop - start, step)]


def row_ranges(rows: int, step: int, most: int | None = None) -> list[tuple[int, int]]:
    """Divide rows into ranges of whole tiles, of nearly equal length, by the shape alone.

    There are at most 8 ranges in short passes, or one for each tile if these are fewer; up to 32 in
    longer passes; and one for each 128 tiles in very long ones, so that a thousand workers have
    something to do. There are never more than ``most``.

    Examples
    --------
    >>> row_ranges(10, 2, most=3)
    [(0, 2), (2, 6), (6, 10)]
    >>> [len(row_ranges(tiles, 1)) for tiles in (5, 50, 500, 5_000, 500_000)]
    [5, 8, 32, 39, 3906]
    """
    tiles = -(-rows // step)
    usual = max(8, min(RANGES, tiles // 8), min(MOST_RANGES, tiles // RANGE_TILES))
    count = min(tiles, usual, usual if most is None else most)
    # Tiles are divided evenly, so that lengths differ by at most one tile.
    edges = [min(rows, tiles * part // count * step) for part in range(count + 1)]
    return list(pairwise(edges))


def map_reduce(
    task: Callable[[int, int], R],
    rows: int,
    step: int,
    merge: Callable[[R, R], R],
    *,
    parts: int | None = None,
    workers: int | None = None,
    finished: Callable[[int], None] | None = None,
) -> R:
    """Run ``task(start, stop)`` on ranges of rows and merge the results, left before right.

    Parameters
    ----------
    task : callable
        Picklable function, sent to each worker once, with all that it holds.
    rows, step : int
        Number of all rows, and rows of a tile; ranges are whole tiles.
    merge : callable
        ``merge(left, right)`` of two results of neighbouring ranges.
    parts : int, optional
        Most ranges.
    workers : int, optional
        Most threads, if there is no Dask client.
    finished : callable, optional
        Called with the number of rows of each finished range; twice for a range whose worker died.

    Raises
    ------
    TrakStoreError
        When there are no rows.
    LocationError
        When the client is closed, its scheduler is lost, or a worker does not see the store.
    MemoryLimitError
        When workers die in every attempt.

    Notes
    -----
    A range whose worker died runs again on another. If all copies of ``task`` died with their workers,
    it is sent again; the pass is tried three times in all.
    """
    if rows < 1:
        raise TrakStoreError("there are no rows to work on")
    ranges_of_rows = row_ranges(rows, step, parts)
    client = active_client()
    if client is None:
        with _RangeProgress(finished, ranges_of_rows), one_blas_thread():
            tree = _merge_tree(task, ranges_of_rows, merge)
            how = chosen_scheduler() or threaded.get
            result: R = compute(tree, scheduler=how, num_workers=workers)[0]
        return result
    topic = f"trakstore-{uuid.uuid4().hex}" if finished is not None else None
    with listening(client, topic, finished):
        return cast(R, compute_on(client, partial(_merge_tree, task, ranges_of_rows, merge, topic)))


def _merge_tree(
    task: Callable[[int, int], R],
    ranges_of_rows: list[tuple[int, int]],
    merge: Callable[[R, R], R],
    topic: str | None = None,
) -> Any:
    sent, run = sent_once(task), delayed(_run_range, pure=False)
    return merged_in_pairs([run(sent, start, stop, topic) for start, stop in ranges_of_rows], merge)


def merged_in_pairs(results: list[Any], merge: Callable[[R, R], R]) -> Any:
    """Merge delayed results, neighbour with neighbour, level by level.

    The tree depends on the number of results alone, and left stays before right, so that sums are
    rounded in the same way whichever task ends first.
    """
    join = delayed(merge, pure=False)
    while len(results) > 1:
        pairs = [results[at : at + 2] for at in range(0, len(results), 2)]
        results = [join(*pair) if len(pair) == 2 else pair[0] for pair in pairs]
    return results[0]


class _RangeProgress(Callback):
    """A Dask callback that reports the number of rows of each range that threads have finished."""

    def __init__(
        self, finished: Callable[[int], None] | None, ranges_of_rows: list[tuple[int, int]]
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._finished, self._rows = finished, [stop - start for start, stop in ranges_of_rows]

    def _posttask(self, key: Any, *_: Any) -> None:
        # Dask does not say which range ended. All have nearly the same length, so that any one will do.
        if self._finished is not None and str(key).startswith("_run_range") and self._rows:
            self._finished(self._rows.pop())


def sent_once(value: Any) -> Any:
    """Return a delayed value that goes to each worker of the active client once, not with every task.

    On a cluster it is the result of a task, which the scheduler computes again if its worker dies. Data
    sent with ``client.scatter`` would be lost with their worker, and copying them to all workers
    beforehand would wait long for a dead one.
    """
    client = active_client()
    if client is None:
        return delayed(value, name=f"value-{uuid.uuid4().hex}", traverse=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sending large graph")
        return delayed(client.submit(_itself, value, pure=False))


def _itself(value: R) -> R:
    return value


def _run_range(task: Callable[[int, int], R], start: int, stop: int, topic: str | None = None) -> R:
    with one_blas_thread(), reused_buffers():
        result = task(start, stop)
    if topic is not None:
        sys.modules["distributed"].get_worker().log_event(topic, stop - start)
    return result


def in_this_process() -> bool:
    """Tell whether tasks run in this process, and so may write into its arrays."""
    return chosen_scheduler() in (None, threaded.get, get_sync)


def task_slots() -> int:
    """Return the number of tasks that run at once in one process."""
    client = active_client()
    if client is not None:
        return max((one["nthreads"] for one in workers_of(client).values()), default=1)
    if chosen_scheduler() is get_sync:
        return 1
    return int(dask.config.get("num_workers", None) or CPU_COUNT)

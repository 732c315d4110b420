"""What Dask's scheduler costs, how two workers compare with one, and what that says for a thousand.

    python benchmarks/scheduler.py [--small] [--rows 400000] [--dim 512] [--targets 1000]

A pass is a few tasks of many tiles each. Measured: the time of passes whose tasks do nothing, by
number of tasks; the time of a tile in one worker process; whole passes of one and of two worker
processes. The table that follows is arithmetic from these: n = 1,000,000,000 rows, tasks started one
after the other by the scheduler, workers that read as fast as the one here.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from distributed import Client, LocalCluster
from stores import median_seconds, random_store

import trakstore as ts
from trakstore.kernels.gram import gram
from trakstore.passes.one_pass import nothing
from trakstore.passes.scheduler import map_reduce, row_ranges

BILLION = 10**9


def idle(_start: int, _stop: int) -> None:
    """A task that does nothing."""


def task_seconds(repeats: int, most: int) -> tuple[float, float]:
    """Seconds of a pass without work, and of each task of it, by a line through what was measured."""
    counts = [count for count in (8, 32, 128, 512, 2048) if count <= most]
    times = [
        median_seconds(partial(map_reduce, idle, count * 128, 1, nothing), repeats)
        for count in counts
    ]
    found = [len(row_ranges(count * 128, 1)) for count in counts]
    for count, seconds in zip(found, times, strict=True):
        print(f"  pass of {count} idle tasks: {1e3 * seconds:.0f} ms", flush=True)
    slope, start = np.polyfit(found, times, 1)
    return max(0.0, float(start)), float(slope)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--small", action="store_true", help="a few seconds")
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--targets", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    o = parser.parse_args()
    if o.small:
        o.rows, o.dim, o.targets, o.repeats = 4000, 64, 50, 1
    with tempfile.TemporaryDirectory() as folder:
        store = random_store(Path(folder) / "s.zarr", o.rows, o.targets, o.dim)
        scores = ts.trak_scores(store)
        features = store.split(0, "train").column("features")
        passes: dict[str, Callable[[], object]] = {
            "gram": lambda: gram(features),
            "top-k": lambda: ts.top_k(scores, 20),
        }
        seconds: dict[tuple[str, int], float] = {}
        for workers in (1, 2):
            options = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": ":0"}
            with LocalCluster(**options) as cluster, Client(cluster):
                print(f"{workers} worker processes")
                start, each = task_seconds(o.repeats, 128 if o.small else 2048)
                for name, run in passes.items():
                    seconds[name, workers] = median_seconds(run, o.repeats)
                    print(f"  {name}: {seconds[name, workers]:.2f} s", flush=True)
        for name in passes:
            print(f"{name}: 2 workers {seconds[name, 1] / seconds[name, 2]:.2f} times as fast as 1")
        tiles = -(-o.rows // scores.tile_rows)
        table(store, seconds["top-k", 1] / tiles, scores.tile_rows, start, each)


def table(store: ts.FeatureStore, tile: float, tile_rows: int, start: float, each: float) -> None:
    """Seconds of a top-k pass over a billion rows, by number of workers."""
    tasks = len(row_ranges(BILLION, tile_rows))
    tiles = -(-BILLION // tile_rows)
    print(f"a tile of {tile_rows} rows: {1e3 * tile:.1f} ms; scheduler: {1e3 * start:.0f} ms a pass, "
          f"{1e3 * each:.2f} ms a task, {1e6 * each * tasks / tiles:.1f} µs a tile")  # fmt: skip
    print(f"top-k of {BILLION:,} x {store.spec.dim} in {tasks:,} tasks:")
    for workers in (1, 10, 100, 1000):
        work = -(-tasks // workers) * tile * tiles / tasks
        schedule = start + tasks * each
        whole = max(start + work, schedule)
        print(f"  {workers:5} workers: work {work:8.0f} s, scheduler {schedule:5.1f} s, together "
              f"{whole:8.0f} s, {tiles * tile / workers / whole:.0%} of ideal")  # fmt: skip


if __name__ == "__main__":
    main()

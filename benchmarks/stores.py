"""What benchmarks of scores share: stores of random features, medians of times, peaks of memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

import trakstore as ts


def random_store(
    where: Path,
    rows: int,
    targets: int,
    dim: int,
    turned: Any = None,
    epochs: tuple[int, ...] = (0,),
) -> ts.FeatureStore:
    """Normal features of both splits, times a matrix where one is given, and Q from 0.1 to 1.

    The store names no output of a model, so that TRAK is the paper's formula, without a temperature.
    """
    rng = np.random.default_rng(0)
    store = ts.FeatureStore.create(where, projection=ts.ProjectionSpec("sjlt", dim=dim))
    splits = (("train", rows), ("test", targets))
    for epoch, (split, count) in product(epochs, splits):
        features = rng.standard_normal((count, dim), dtype=np.float32)
        features = features if turned is None else features @ turned
        q = rng.uniform(0.1, 1, count).astype(np.float32)
        store.write_split(epoch, split, features, out_to_loss=q)
    return store


def timed(run: Callable[[], object]) -> float:
    """Seconds."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def median_seconds(run: Callable[[], object], repeats: int) -> float:
    """Of some runs, after one that is not counted."""
    run()
    return statistics.median(timed(run) for _ in range(repeats))


def peak() -> int:
    """The most resident memory that this process has had, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024

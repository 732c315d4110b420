"""What each operation costs, in integers, for sizes of any kind; and how fast this machine is."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trakstore.linalg.memory import memory_budget
from trakstore.planning import CHUNK_BYTES

__all__ = ["Cost", "Problem", "Speed", "calibrate", "costs"]


@dataclass(frozen=True)
class Problem:
    """Sizes: train rows n, dimension k, targets m, checkpoints, list length, bytes of a value."""

    rows: int
    dim: int
    targets: int
    epochs: int = 1
    top: int = 100
    itemsize: int = 4
    workers: int = 1
    memory_limit: int | None = None


@dataclass(frozen=True)
class Cost:
    """What one operation takes over all workers.

    Attributes
    ----------
    operation : str
    disk : int
        Bytes that stay on disk.
    read, written : int
        Bytes.
    memory : int
        Peak bytes of one process, beside its imports.
    flops : int
    """

    operation: str
    disk: int
    read: int
    written: int
    memory: int
    flops: int


@dataclass(frozen=True)
class Speed:
    """Of one process: float32 products in flop/s, reading and writing in bytes/s."""

    flops: float
    read: float
    write: float

    def seconds(self, cost: Cost, workers: int = 1) -> float:
        """Products overlap with reading; the slower one counts, and writing comes on top."""
        each = max(cost.flops / self.flops, cost.read / self.read) + cost.written / self.write
        return each / workers


def costs(problem: Problem) -> tuple[Cost, ...]:
    """Featurize, gram, the whole matrix, and top-k.

    Examples
    --------
    >>> sizes = Problem(rows=10**9, dim=512, targets=1000, itemsize=2, memory_limit=10**9)
    >>> [(one.operation, one.disk // 10**9, one.flops // 10**12) for one in costs(sizes)]
    [('featurize', 1044, 0), ('gram', 0, 327), ('matrix', 4000, 1024), ('topk', 0, 1024)]
    """
    n, k, m, epochs = problem.rows, problem.dim, problem.targets, problem.epochs
    limit = problem.memory_limit or memory_budget(None)
    features = n * k * problem.itemsize * epochs
    columns = n * (8 + 3 * 4) * epochs  # ids, norm, output, out_to_loss
    # five eighths: the block triangle of four blocks; a window of targets is one pass
    gram_flops = 2 * n * k * k * 5 // 8 * epochs
    tile = CHUNK_BYTES // max(1, k * problem.itemsize)
    gram_memory = min(limit, 40 * k * k + 2 * 3 * CHUNK_BYTES)
    per_target = 4 * k * epochs + 2 * 4 * tile + 16 * problem.top * 12
    passes = max(1, -(-m * per_target // max(1, limit * 3 // 4)))
    window = min(limit, m * per_target // passes + 6 * CHUNK_BYTES)
    products = 2 * n * k * m * epochs
    return (
        Cost("featurize", features + columns, 0, features + columns, 3 * CHUNK_BYTES, 0),
        Cost("gram", 8 * k * k * epochs, features, 8 * k * k * epochs, gram_memory, gram_flops),
        Cost("matrix", 4 * n * m, features * passes, 4 * n * m, window, products),
        Cost("topk", 16 * m * problem.top, features * passes, 0, window, products),
    )


def calibrate(folder: str | None = None) -> Speed:
    """Measure this machine for about a second; the disk that holds ``folder``."""
    left, right = (np.ones((1024, 1024), dtype=np.float32) for _ in range(2))
    left @ right
    flops = 2 * 1024**3 / _fastest(lambda: left @ right, 5)
    data = np.random.default_rng(0).bytes(CHUNK_BYTES)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        path = Path(place) / "chunk"
        write = len(data) / _fastest(lambda: path.write_bytes(data), 5)
        read = len(data) / _fastest(path.read_bytes, 5)
    return Speed(flops, read, write)


def _fastest(run: Callable[[], object], times: int) -> float:
    found = []
    for _ in range(times):
        began = time.perf_counter()
        run()
        found.append(time.perf_counter() - began)
    return max(min(found), 1e-9)

"""Costs of each operation in integers, for any sizes, and the speed of this machine."""

from __future__ import annotations

import tempfile
import timeit
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trakstore.errors import LocationError
from trakstore.kernels.blocked_cholesky import BlockedCholesky
from trakstore.kernels.choice import choose_solver
from trakstore.kernels.gram import gram_bytes, gram_flops
from trakstore.kernels.solvers import Cholesky, Damping
from trakstore.kernels.tiled_gram import plan_strips
from trakstore.passes.memory import memory_budget
from trakstore.passes.scheduler import task_slots, tile_height
from trakstore.planning import CHUNK_BYTES, block_shape, fit_slots, human_bytes
from trakstore.scores.rank_correlation import centred_ranks
from trakstore.scores.running_lists import STATE_BYTES
from trakstore.scores.top_k import plan_top_k
from trakstore.scores.window_plans import ScoreSizes, plan_windows, solve_bytes, tile_bytes


@dataclass(frozen=True)
class Problem:
    """Sizes of a problem: n rows, k dimensions, m targets, epochs, list length, bytes of a value."""

    rows: int
    dim: int
    targets: int
    epochs: int = 1
    top: int = 100
    itemsize: int = 4
    workers: int = 1
    memory_limit: int | None = None

    @property
    def read_itemsize(self) -> int:
        """Bytes of a value once read: values stored in 8 bits become float32."""
        return 4 if self.itemsize == 1 else self.itemsize


@dataclass(frozen=True)
class Cost:
    """Bytes and operations of one operation, over all workers.

    Attributes
    ----------
    operation : str
    disk : int
        Bytes that the result takes on disk.
    read, written : int
        Bytes that all workers read and write.
    memory : int
        Peak bytes of one process, without its imports.
    flops : int
    ranked : int
        Values that one process sorts.
    """

    operation: str
    disk: int
    read: int
    written: int
    memory: int
    flops: int
    ranked: int = 0


@dataclass(frozen=True)
class Speed:
    """Speed of one process: float32 products in flop/s, I/O in bytes/s, sorting in values/s."""

    flops: float
    read: float
    write: float
    ranks: float

    def seconds(self, cost: Cost, workers: int = 1) -> float:
        """Estimate the time of an operation in seconds."""
        # Products overlap with reading, so that the slower of the two counts. Writing and sorting are
        # added.
        each = max(cost.flops / self.flops, cost.read / self.read) + cost.written / self.write
        return each / workers + cost.ranked / self.ranks


def costs(problem: Problem) -> tuple[Cost, ...]:
    """Return the costs of featurize, gram, the whole matrix, and top-k.

    Examples
    --------
    >>> sizes = Problem(rows=10**9, dim=512, targets=1000, itemsize=2, memory_limit=10**9)
    >>> [(one.operation, one.disk // 10**9, one.flops // 10**12) for one in costs(sizes)]
    [('featurize', 1044, 0), ('gram', 0, 262), ('matrix', 4000, 1024), ('topk', 0, 1024)]
    """
    n, k, m, epochs = problem.rows, problem.dim, problem.targets, problem.epochs
    features = n * k * problem.itemsize * epochs
    # Columns beside the features: ids, norm, output, out_to_loss.
    columns = n * (8 + 3 * 4) * epochs
    limit = problem.memory_limit or memory_budget(None)
    sizes = planned_sizes(problem)
    matrix = plan_windows(sizes, "streaming scores", limit)
    lists = plan_top_k(sizes, problem.top, None, limit)
    memory, strips = _gram_plan(problem, limit)
    products = 2 * n * k * m * epochs
    # Each window of targets reads all features.
    reads = {plan: features * -(-m // plan.targets) for plan in (matrix, lists)}
    written, stored = features + columns, 8 * k * k * epochs
    return (
        Cost("featurize", written, 0, written, 3 * CHUNK_BYTES, 0),
        Cost("gram", stored, features * strips, stored, memory, gram_flops(n, k) * epochs),
        Cost("matrix", 4 * n * m, reads[matrix], 4 * n * m, matrix.memory, products),
        Cost("topk", STATE_BYTES * m * problem.top, reads[lists], 0, lists.memory, products),
    )


def planned_sizes(problem: Problem) -> ScoreSizes:
    """Return the sizes of the scores of a problem, chunked as a store has them."""
    dim, itemsize = problem.dim, problem.read_itemsize
    train, target = (_tile_height(problem, rows) for rows in (problem.rows, problem.targets))
    limit, held = problem.memory_limit or memory_budget(None), 0
    for _ in range(problem.epochs):
        solver = choose_solver(problem.rows, dim, Damping(), limit, held)
        # Once the factors in memory fill their share, all further ones go to disk.
        if isinstance(solver, BlockedCholesky):
            break
        held += 8 * min(problem.rows, dim) ** 2
    tile = tile_bytes(train, dim, itemsize)
    solve = solve_bytes(min(target, problem.targets), dim, itemsize)
    return ScoreSizes(problem.targets, train, problem.epochs * dim, tile, solve, held)


def _tile_height(problem: Problem, rows: int) -> int:
    """Return the rows of a tile, for a split with so many rows."""
    chunk_rows = block_shape(rows, problem.dim, problem.itemsize).chunk_rows
    return tile_height(chunk_rows, problem.dim * problem.read_itemsize)


def _gram_plan(problem: Problem, limit: int) -> tuple[int, int]:
    """Return peak bytes, and the number of passes over the features: one for each round of strips."""
    rows, dim, step = problem.rows, problem.dim, _tile_height(problem, problem.rows)
    if isinstance(choose_solver(rows, dim, Damping(), limit), Cholesky):
        waiting, each = gram_bytes(dim, step, problem.read_itemsize, 4)
        slots = fit_slots(task_slots(), 1, waiting, each, limit, f"a gram of {dim}")
        return waiting + slots * each, 1
    plan = plan_strips(rows, dim, problem.read_itemsize, step, "float32", limit)
    return plan.memory, -(-dim // plan.height)


def calibrate() -> Speed:
    """Measure this machine for about a second; the disk that holds its temporary files.

    Raises
    ------
    LocationError
        When nothing can be written there.
    """
    left, right = (np.ones((1024, 1024), dtype=np.float32) for _ in range(2))
    left @ right
    # The first product only starts BLAS: it is not timed.
    flops = 2 * 1024**3 / _fastest(lambda: left @ right, 5)
    data = np.random.default_rng(0).bytes(CHUNK_BYTES)
    try:
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / "chunk"
            write = len(data) / _fastest(lambda: path.write_bytes(data), 5)
            read = len(data) / _fastest(path.read_bytes, 5)
    except OSError as error:
        raise LocationError(
            f"the disk cannot be measured: {human_bytes(len(data))} cannot be written to the folder of "
            f"temporary files ({error}): name another one by the variable TMPDIR"
        ) from error
    row = np.random.default_rng(0).standard_normal((1, 2**18))
    ranks = row.size / _fastest(lambda: centred_ranks(row), 3)
    return Speed(flops, read, write, ranks)


def _fastest(run: Callable[[], object], times: int) -> float:
    """Return the least of some times in seconds: the others were disturbed by something."""
    return max(min(timeit.repeat(run, number=1, repeat=times)), 1e-9)

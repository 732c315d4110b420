"""Costs of questions over checkpoints, in integers."""

from __future__ import annotations

from dataclasses import replace

from trakstore.analysis.evolution import SCORE_BYTES
from trakstore.analysis.transition import SAMPLE_BYTES
from trakstore.passes.memory import memory_budget
from trakstore.planning import block_shape
from trakstore.scores.costs import Cost, Problem, planned_sizes
from trakstore.scores.window_plans import plan_windows


def costs_over_time(problem: Problem) -> tuple[Cost, ...]:
    """Plan the evolution of all targets, and a transition with all other neighbouring epochs as null.

    The memory includes the kernels' factors of all epochs. If not even one target fits the limit, it is
    the memory that one target needs.

    Examples
    --------
    >>> evolve, _ = costs_over_time(Problem(10**6, 512, 1000, epochs=100, memory_limit=4 * 10**9))
    >>> evolve.read // 10**12, evolve.memory // 10**6
    (4, 4209)
    """
    limit = problem.memory_limit or memory_budget(None)
    return _evolution(problem, limit), _transitions(problem, limit)


def _products(problem: Problem, targets: int) -> int:
    """Operations of the products of targets with all train rows: a multiplication and an addition."""
    return 2 * problem.rows * problem.dim * targets * problem.epochs


def _evolution(problem: Problem, limit: int) -> Cost:
    """Each window of targets reads all epochs, and sorts each of its scores twice."""
    n, m = problem.rows, problem.targets
    fitting = max(1, min(m, limit // (SCORE_BYTES * n)))
    read = n * problem.dim * problem.itemsize * problem.epochs * -(-m // fitting)
    memory = fitting * SCORE_BYTES * n + planned_sizes(problem).held_bytes
    ranked = 2 * n * m * problem.epochs
    return Cost("evolve", 0, read, 0, memory, _products(problem, m), ranked)


def _transitions(problem: Problem, limit: int) -> Cost:
    """Passes for moments, one with a single target, and the chunks of the listed samples."""
    n, kept = problem.rows, SAMPLE_BYTES * problem.rows
    one = planned_sizes(replace(problem, epochs=1))
    # A problem that will be refused still gets a plan, with half of the limit.
    least = max(limit - kept, limit // 2)
    plan = plan_windows(one, "means of scores", least, target_bytes=64)
    features = n * problem.dim * problem.itemsize
    listed = min(n, problem.top * block_shape(n, problem.dim, problem.itemsize).chunk_rows)
    lists = 2 * 2 * features * listed // n  # gained and lost, before and after
    read = features * problem.epochs * (-(-problem.targets // plan.targets) + 1) + lists
    memory = kept + plan.memory + planned_sizes(problem).held_bytes - one.held_bytes
    return Cost("transitions", 0, read, 0, memory, _products(problem, problem.targets + 1))

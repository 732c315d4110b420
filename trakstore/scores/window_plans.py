"""Plans of windows of targets, from sizes in integers alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from trakstore.errors import LARGER_LIMIT
from trakstore.passes.memory import (
    DEVICE_ADVICE,
    DEVICE_TASKS,
    device_budget,
    least_slots,
    memory_budget,
    room_ahead,
)
from trakstore.passes.scheduler import task_slots
from trakstore.planning import ranges, window_rows, with_slack

# A smaller window is worth less than fewer tasks at once.
ENOUGH_TARGETS = 256
# Values of a product that waits to be added to a tile.
SCRATCH_VALUES = 2**20


@dataclass(frozen=True)
class ScoreSizes:
    """Sizes of scores that a plan depends on.

    Attributes
    ----------
    targets : int
    tile_rows : int
        Train rows of one tile.
    columns : int
        Columns of the left factors of all epochs together.
    tile_bytes, solve_bytes : int
        See :func:`tile_bytes` and :func:`solve_bytes`; the most of any epoch.
    held_bytes : int
        Bytes of the kernels' factors, which stay in memory.
    id_bytes : int
        Bytes of one train id.
    device : str
        Device that computes tiles.
    """

    targets: int
    tile_rows: int
    columns: int
    tile_bytes: int
    solve_bytes: int
    held_bytes: int = 0
    id_bytes: int = 8
    device: str = "cpu"


def tile_bytes(rows: int, columns: int, itemsize: int) -> int:
    """Return the bytes of a train tile as stored, as float32, and scaled."""
    return rows * columns * (itemsize + 8)


def solve_bytes(rows: int, columns: int, itemsize: int) -> int:
    """Return the bytes of targets as stored, and of four float64 copies on the way through a solver."""
    return rows * columns * (itemsize + 32)


@dataclass(frozen=True)
class WindowPlan:
    """Targets of a window, the tasks that run at once in a process, and the bytes they need.

    ``ahead`` bytes are left in each task for stored rows that are read before they are asked for.
    """

    targets: int
    workers: int
    memory: int = 0
    ahead: int = 0

    def windows(self, targets: int) -> Iterator[tuple[int, int]]:
        return ranges(targets, self.targets)


def plan_windows(
    sizes: ScoreSizes,
    what: str,
    memory_limit: int | str | None = None,
    *,
    fixed_bytes: int = 0,
    task_bytes: int = 0,
    target_bytes: int = 0,
    state_bytes: int = 0,
    device_bytes: int = 0,
    align: int = 1,
) -> WindowPlan:
    """Choose how many targets to take at once, and how many tasks to run.

    Parameters
    ----------
    sizes : ScoreSizes
    what : str
        The operation, for the message.
    memory_limit : int or str, optional
        Bytes of one process; a quarter of the available memory when None.
    fixed_bytes, task_bytes, target_bytes, state_bytes : int
        Bytes that the operation needs beside the tiles: at all, in each task, for each target of a
        window, and for each target in each task.
    device_bytes : int
        Bytes on a GPU for each target in each task, beside its scores.
    align : int
        Windows are whole multiples of so many targets where more than one fits.

    Raises
    ------
    MemoryLimitError
        When one target does not fit, here or on the GPU.
    """
    limit, rows, step = memory_budget(memory_limit), sizes.targets, sizes.tile_rows
    fixed = fixed_bytes + sizes.held_bytes + sizes.solve_bytes
    task = task_bytes + sizes.tile_bytes + 4 * min(SCRATCH_VALUES, rows * step)
    # In float32: a target's left factors in the window, and its scores in each task's tile.
    target, each = target_bytes + 4 * sizes.columns, state_bytes + 4 * step
    slots, fitting = _fitting(rows, fixed, task, target, each, limit, what)
    there = device_budget(sizes.device)
    if there is not None:
        few = _on_device(sizes, device_bytes, there, what)
        slots, fitting = min(slots, few.workers), min(fitting, few.targets)
    targets = max(fitting // align * align, min(align, fitting))
    memory = fixed + slots * task + targets * (target + slots * each)
    return WindowPlan(targets, slots, memory, room_ahead(limit, memory, slots))


def _on_device(sizes: ScoreSizes, list_bytes: int, limit: int, what: str) -> WindowPlan:
    """Choose how many targets and tasks fit a GPU."""
    # A tile is there twice as stored, as one is sent while the other is used, and as it is computed
    # with. In the plan of the host it counts once as stored.
    task, target, each = 2 * sizes.tile_bytes, 4 * sizes.columns, list_bytes + 4 * sizes.tile_rows
    slots, targets = _fitting(
        sizes.targets,
        0,
        task,
        target,
        each,
        limit,
        f"{what} on {sizes.device}",
        DEVICE_TASKS,
        DEVICE_ADVICE,
    )
    return WindowPlan(targets, slots, slots * task + targets * (target + slots * each))


def _fitting(
    rows: int,
    fixed: int,
    task: int,
    target: int,
    each: int,
    limit: int,
    what: str,
    most: int | None = None,
    advice: str = LARGER_LIMIT,
) -> tuple[int, int]:
    """Choose the tasks at once and the targets of a window.

    Bytes are ``fixed`` at all, ``task`` in each task, ``target`` for each target, and ``each`` for each
    target in each task; at ``most`` so many tasks.
    """
    # Every task has a tile of its own. Tasks give way as long as that leaves no room for a window that
    # is worth a pass over the train rows, since each window reads all of them.
    least, enough = least_slots(), min(rows, ENOUGH_TARGETS)
    slots = max(least, min(task_slots(), task_slots() if most is None else most))
    while slots > least and (
        with_slack(fixed + slots * task + enough * (target + slots * each)) > limit
    ):
        slots -= 1
    row, once = target + slots * each, fixed + slots * task
    return slots, window_rows(rows, row, once, limit, what, advice)

"""Windows of targets against streamed train rows: planned in integers, then run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from trakstore.passes.memory import least_slots, memory_budget, room_ahead
from trakstore.passes.one_pass import Tiles, nothing
from trakstore.passes.scheduler import task_slots
from trakstore.planning import ranges, window_rows, with_slack
from trakstore.progress import ProgressLine, on_terminal
from trakstore.scores.factored import Scores
from trakstore.scores.parts import F32, SCRATCH_VALUES, Part, Window, held_bytes
from trakstore.scores.window_pass import WindowPass

__all__ = [
    "TileSkip",
    "TileWriter",
    "WindowPlan",
    "each_window",
    "for_each_tile",
    "plan_windows",
]

R = TypeVar("R")

ENOUGH_TARGETS = 256  # a smaller window is worth less than fewer tasks at once


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
    scores: Scores,
    what: str,
    memory_limit: int | str | None = None,
    *,
    fixed_bytes: int = 0,
    task_bytes: int = 0,
    target_bytes: int = 0,
    state_bytes: int = 0,
    align: int = 1,
) -> WindowPlan:
    """How many targets to take at once, and how many tasks to run.

    Parameters
    ----------
    scores : Scores
    what : str
        The operation, for the message.
    memory_limit : int or str, optional
        Bytes of one process; a quarter of the available memory when None.
    fixed_bytes, task_bytes, target_bytes, state_bytes : int
        What the operation needs beside the tiles: at all, in each task, for each target of a
        window, and for each target in each task.
    align : int
        Windows are whole multiples of so many targets where more than one fits.

    Raises
    ------
    MemoryLimitError
        When one target does not fit.
    """
    limit, rows, step = memory_budget(memory_limit), scores.shape[0], scores.tile_rows
    fixed = (
        fixed_bytes + held_bytes(scores.parts) + max(_solve_bytes(part) for part in scores.parts)
    )
    task = task_bytes + max(_tile_bytes(part.train, step) for part in scores.parts)
    task += 4 * min(SCRATCH_VALUES, rows * step)
    target = target_bytes + 4 * sum(part.target.shape[1] for part in scores.parts)
    each = state_bytes + 4 * step
    slots, least = task_slots(), least_slots()
    enough = min(rows, ENOUGH_TARGETS)
    while slots > least and (
        with_slack(fixed + slots * task + enough * (target + slots * each)) > limit
    ):
        slots -= 1
    fitting = window_rows(rows, target + slots * each, fixed + slots * task, limit, what)
    targets = max(fitting // align * align, min(align, fitting))
    memory = fixed + slots * task + targets * (target + slots * each)
    return WindowPlan(targets, slots, memory, room_ahead(limit, memory, slots))


def _tile_bytes(train: Any, step: int) -> int:
    """A train tile as stored, as float32, and scaled."""
    return int(step * train.shape[1] * (train.dtype.itemsize + 8))


def _solve_bytes(part: Part) -> int:
    """A tile of targets as stored, and four of float64 on the way through the solver."""
    rows, dim = min(part.solve_rows, part.target.shape[0]), part.target.shape[1]
    return int(rows * dim * (part.target.dtype.itemsize + 32))


class TileWriter(Protocol):
    """Takes the tile of targets t0..t1 and train rows n0..n1; picklable, called in the tasks."""

    def __call__(
        self, t0: int, t1: int, n0: int, n1: int, tile: NDArray[np.float32], /
    ) -> None: ...


class TileSkip(Protocol):
    """Whether all of a tile, of which one may ask for a whole window, is there already."""

    def __call__(self, t0: int, t1: int, n0: int, n1: int, /) -> bool: ...


def for_each_tile(
    scores: Scores,
    write: TileWriter,
    memory_limit: int | str | None = None,
    *,
    align: int = 1,
    skip: TileSkip | None = None,
) -> None:
    """Call ``write(t0, t1, n0, n1, tile)`` once for each tile of the scores.

    Tiles start at multiples of ``scores.tile_rows`` train rows. Windows of targets follow one
    another; tiles of one window are written at once from several threads or processes.

    Parameters
    ----------
    scores : Scores
    write : callable
        Gets a float32 tile that is filled anew afterwards.
    memory_limit : int or str, optional
        Bytes of one process; a quarter of the available memory when None.
    align : int
        Windows start at multiples of so many targets where memory allows.
    skip : callable, optional
        ``skip(t0, t1, n0, n1)``: tiles, and whole windows, that are not to be computed.

    Raises
    ------
    MemoryLimitError
        When one target and one tile do not fit.
    """
    plan = plan_windows(scores, "streaming scores", memory_limit, align=align)
    rows, columns = scores.shape
    windows = [one for one in plan.windows(rows) if skip is None or not skip(*one, 0, columns)]
    each_window(scores, plan, partial(_WritePass, write=write, skip=skip), windows=windows)


def each_window(
    scores: Scores,
    plan: WindowPlan,
    make: Callable[[int, Window, int], WindowPass[Any, R]],
    what: str = "scores",
    windows: Iterable[tuple[int, int]] | None = None,
) -> list[R]:
    """Results of a pass over the train rows for each window of targets, one after the other.

    Parameters
    ----------
    scores : Scores
    plan : WindowPlan
    make : callable
        ``make(step, window, first)`` gives the pass of a window whose first target is ``first``.
    what : str
        The operation, for the line that shows progress.
    windows : iterable of (start, stop), optional
        Only these windows of the plan.
    """
    (rows, columns), step, found = scores.shape, scores.tile_rows, []
    with ProgressLine(what, rows * columns, unit="scores", show=on_terminal()) as progress:
        for start, stop in plan.windows(rows) if windows is None else windows:
            one = make(step, scores.window(start, stop, plan.ahead), start)
            advance = partial(_advance, progress, stop - start)
            found.append(one.run(columns, workers=plan.workers, finished=advance))
    return found


def _advance(progress: ProgressLine, targets: int, rows: int) -> None:
    progress.advance(targets * rows)


@dataclass(frozen=True, eq=False)
class _WritePass(WindowPass[None, None]):
    write: TileWriter
    skip: TileSkip | None
    merge = staticmethod(nothing)

    def tiles(self, start: int, stop: int) -> Tiles:
        every = super().tiles(start, stop)
        return [one for one in every if self.skip is None or not self.skip(*self.at, *one)]

    def begin(self) -> None:
        return

    def take(self, state: None, tile: F32, low: int) -> None:  # noqa: ARG002
        self.write(*self.at, low, low + tile.shape[1], tile)

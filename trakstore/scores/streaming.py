"""Windows of targets against streamed train rows: planned in integers, then run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from trakstore.passes.one_pass import Tiles, nothing
from trakstore.progress import ProgressLine, on_terminal
from trakstore.scores.factored import Scores
from trakstore.scores.parts import F32, Window
from trakstore.scores.window_pass import WindowPass
from trakstore.scores.window_plans import WindowPlan, plan_windows

__all__ = [
    "TileSkip",
    "TileWriter",
    "each_window",
    "for_each_tile",
]

R = TypeVar("R")


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
    plan = plan_windows(scores.sizes, "streaming scores", memory_limit, align=align)
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

"""Windows of targets against streamed train rows: each visit of a pass gets a tile of scores."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Self, TypeAlias, TypeVar, cast

from trakstore.passes.gpu import usable_device
from trakstore.passes.one_pass import Pass, Tiles, nothing
from trakstore.passes.scheduler import tile_ranges
from trakstore.progress import ProgressLine, on_terminal
from trakstore.scores.factored import Scores
from trakstore.scores.parts import F32, TileMaker, Window
from trakstore.scores.window_plans import WindowPlan, plan_windows

S = TypeVar("S")
R = TypeVar("R")


@dataclass(frozen=True, eq=False)
class WindowPass(Pass[tuple[S, TileMaker], R]):
    """A pass of a window of targets over the train rows, which takes tiles of scores.

    Attributes
    ----------
    window : Window
        The targets, and the train rows.
    first : int
        Position of the first target among all.
    takes_tensors : bool
        Whether :meth:`take` gets tiles of a GPU as tensors there; they come back else.
    """

    window: Window
    first: int
    takes_tensors: ClassVar[bool] = False

    @abstractmethod
    def begin(self) -> S:
        """Return a new state."""

    @abstractmethod
    def take(self, state: S, tile: Any, low: int) -> None:
        """Change the state by the scores with the train rows from ``low`` on.

        The tile, of shape ``(targets, train rows)`` and float32, is filled anew afterwards.
        """

    def end(self, state: S) -> R:
        """Return the result of a range: by default the state itself."""
        return cast("R", state)

    @property
    def targets(self) -> int:
        """Number of targets."""
        return len(self.window.lefts[0])

    @property
    def at(self) -> tuple[int, int]:
        """Position of the first of these targets among all, and of the one behind the last."""
        return self.first, self.first + self.targets

    @property
    def device(self) -> str:
        return usable_device(self.window.device)

    def on_cpu(self) -> Self:
        return replace(self, window=self.window.on_cpu())

    @property
    def tile_rows(self) -> int:
        """Train rows of a tile at most: by default those of a step."""
        return self.step

    def tiles(self, start: int, stop: int) -> Tiles:
        return tile_ranges(start, stop, self.tile_rows)

    def reading(self, tiles: Tiles) -> AbstractContextManager[None]:
        return self.window.reading(tiles)

    def start(self) -> tuple[S, TileMaker]:
        return self.begin(), self.window.tile_maker(self.tile_rows)

    def visit(self, state: tuple[S, TileMaker], low: int, high: int) -> tuple[S, TileMaker]:
        own, maker = state
        make = maker.tile if self.takes_tensors else maker.host_tile
        self.take(own, make(low, high), low)
        return state

    def finish(self, state: tuple[S, TileMaker]) -> R:
        return self.end(state[0])


# Functions of targets t0..t1 and train rows n0..n1, picklable: one takes their tile, one tells whether
# all of it, or of a whole window, is there already.
TileWriter: TypeAlias = Callable[[int, int, int, int, F32], None]
TileSkip: TypeAlias = Callable[[int, int, int, int], bool]


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
    """Run a pass over the train rows for each window of targets, one after the other.

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
    (rows, columns), step, results = scores.shape, scores.tile_rows, []
    with ProgressLine(what, rows * columns, unit="scores", show=on_terminal()) as progress:
        for start, stop in plan.windows(rows) if windows is None else windows:
            # Preconditioned here, once, and sent to the workers with the pass.
            one = make(step, scores.window(start, stop, plan.ahead), start)
            advance = partial(_advance, progress, stop - start)
            results.append(one.run(columns, workers=plan.workers, finished=advance))
    return results


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

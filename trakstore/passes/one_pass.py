"""Passes: the work of an operation on each tile of rows, and the merging of results.

Rows are divided into ranges of whole tiles (:mod:`~trakstore.passes.scheduler`). In each range a pass
starts a state, visits one tile after the other, and turns the state into a result. Results of
neighbouring ranges are merged, left before right, in a tree that depends on the shape alone.

Tiles and states of a pass are in the memory of one device; results of ranges are on the CPU.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from trakstore.passes.gpu import NotFiniteError, working_on_gpu
from trakstore.passes.scheduler import map_reduce, tile_ranges
from trakstore.passes.sent import Sent

S = TypeVar("S")
R = TypeVar("R")
Tiles = Sequence[tuple[int, int]]


def beside(left: NDArray[Any], right: NDArray[Any]) -> NDArray[Any]:
    """Merge results by joining them along the last dimension."""
    return np.concatenate([left, right], axis=-1)


def nothing(left: None, right: None) -> None:
    """Merge results of passes that only write."""


@dataclass(frozen=True, eq=False)
class Pass(Sent, ABC, Generic[S, R]):
    """An operation on rows; picklable, since it is sent to the workers of a cluster.

    Attributes
    ----------
    step : int
        Rows of a tile.
    """

    step: int

    @staticmethod
    def merge(left: Any, right: Any) -> Any:
        """Merge the results of two neighbouring ranges: by default they add up."""
        return left + right

    @abstractmethod
    def start(self) -> S:
        """Return a new state, before the first tile of a range."""

    @abstractmethod
    def visit(self, state: S, low: int, high: int) -> S:
        """Return the state after the tile of rows ``low`` to ``high``; the given one may be changed."""

    def finish(self, state: S) -> R:
        """Return the result of a range: by default the state itself."""
        return cast("R", state)

    def tiles(self, start: int, stop: int) -> Tiles:
        """Return the tiles of a range that are visited: by default all."""
        return tile_ranges(start, stop, self.step)

    def reading(self, tiles: Tiles) -> AbstractContextManager[None]:  # noqa: ARG002
        """Within, read ahead for the visits of these tiles: by default nothing."""
        return nullcontext()

    @property
    def device(self) -> str:
        """Device whose memory holds the tiles: by default the CPU."""
        return "cpu"

    def on_cpu(self) -> Pass[S, R]:
        """Return the same pass with its tiles on the CPU."""
        return self

    def over(self, start: int, stop: int) -> R:
        """Compute the result of one range."""
        device = self.device
        if device != "cpu":
            # Checking every tile would make the GPU wait for each answer. It reports only at the end
            # that something was not finite, and the CPU then finds out what.
            with suppress(NotFiniteError), working_on_gpu(device):
                return self._visited(start, stop)
        return self.on_cpu()._visited(start, stop)

    def _visited(self, start: int, stop: int) -> R:
        # A range of one pass runs in one thread, so that a state needs no lock.
        tiles = self.tiles(start, stop)
        state = self.start()
        with self.reading(tiles):
            for low, high in tiles:
                state = self.visit(state, low, high)
        return self.finish(state)

    def run(
        self,
        rows: int,
        *,
        parts: int | None = None,
        workers: int | None = None,
        finished: Callable[[int], None] | None = None,
    ) -> R:
        """Compute the result of all rows; see :func:`~trakstore.passes.scheduler.map_reduce`."""
        result: R = map_reduce(
            self.over, rows, self.step, self.merge, parts=parts, workers=workers, finished=finished
        )
        return result


@dataclass(frozen=True, eq=False)
class ListPass(Pass[list[NDArray[Any]], NDArray[Any]]):
    """A pass in which each tile gives an array; the arrays are joined along the last dimension."""

    merge = staticmethod(beside)

    @abstractmethod
    def tile(self, low: int, high: int) -> NDArray[Any]:
        """Compute the array of the rows ``low`` to ``high``."""

    def start(self) -> list[NDArray[Any]]:
        return []

    def visit(self, state: list[NDArray[Any]], low: int, high: int) -> list[NDArray[Any]]:
        state.append(self.tile(low, high))
        return state

    def finish(self, state: list[NDArray[Any]]) -> NDArray[Any]:
        return np.concatenate(state, axis=-1)

"""Passes of a window of targets over the train rows: each visit gets a tile of scores."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np

from trakstore.passes.one_pass import Pass, Tiles
from trakstore.scores.parts import F32, Window

__all__ = ["WindowPass"]

S = TypeVar("S")
R = TypeVar("R")


@dataclass(frozen=True, eq=False)
class WindowPass(Pass[tuple[S, F32], R]):
    """A pass that takes tiles of scores.

    Attributes
    ----------
    window : Window
        The targets, and the train rows.
    first : int
        Position of the first target among all.
    """

    window: Window
    first: int

    @abstractmethod
    def begin(self) -> S:
        """A new state."""

    @abstractmethod
    def take(self, state: S, tile: F32, low: int) -> None:
        """Change the state by the scores with the train rows from ``low`` on.

        The tile, of shape ``(targets, train rows)``, is filled anew afterwards.
        """

    def end(self, state: S) -> R:
        """The result of a range: the state itself, where a subclass does not say otherwise."""
        return cast("R", state)

    @property
    def targets(self) -> int:
        """Number of targets."""
        return len(self.window.lefts[0])

    @property
    def at(self) -> tuple[int, int]:
        """Which of all targets these are: the first, and the one behind the last."""
        return self.first, self.first + self.targets

    def reading(self, tiles: Tiles) -> AbstractContextManager[None]:
        """See :meth:`Pass.reading`."""
        return self.window.reading(tiles)

    def start(self, tiles: Tiles) -> tuple[S, F32]:  # noqa: ARG002
        """See :meth:`Pass.start`."""
        # one array for all tiles: a cluster's workers give each freed one back to the system
        return self.begin(), np.empty((self.targets, self.step), dtype=np.float32)

    def visit(self, state: tuple[S, F32], low: int, high: int) -> tuple[S, F32]:
        """See :meth:`Pass.visit`."""
        own, buffer = state
        self.take(own, self.window.tile(low, high, buffer[:, : high - low]), low)
        return state

    def finish(self, state: tuple[S, F32]) -> R:
        """See :meth:`Pass.finish`."""
        return self.end(state[0])

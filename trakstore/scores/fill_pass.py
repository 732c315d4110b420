"""A pass that fills an array with the scores of a window of targets."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

from trakstore.passes.gpu import usable_device
from trakstore.passes.one_pass import Pass, Tiles, nothing
from trakstore.scores.parts import F32, TileMaker, Window


@dataclass(frozen=True, eq=False)
class FillPass(Pass[TileMaker, None]):
    """Pass that writes the scores of a window's targets to ``out``, shape (targets, n)."""

    window: Window
    out: F32
    merge = staticmethod(nothing)

    @property
    def device(self) -> str:
        return usable_device(self.window.device)

    def reading(self, tiles: Tiles) -> AbstractContextManager[None]:
        return self.window.reading(tiles)

    def start(self) -> TileMaker:
        return self.window.tile_maker(self.step)

    def visit(self, state: TileMaker, low: int, high: int) -> TileMaker:
        state.host_tile(low, high, self.out[:, low:high])
        return state

    def finish(self, state: TileMaker) -> None:  # noqa: ARG002
        return

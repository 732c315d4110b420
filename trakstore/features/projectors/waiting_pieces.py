"""Pieces of one backward pass on a GPU, each of which waits for others in the way that is fastest."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from trakstore.features.projectors.collecting import Adder, SmallPieces
from trakstore.features.projectors.pieces import Outer, Piece
from trakstore.features.projectors.sheared import Sheared
from trakstore.features.projectors.waiting_tiles import Sketch, WaitingTiles
from trakstore.features.projectors.waiting_windows import WaitingWindows, WindowLists

__all__ = ["WaitingPieces"]


class DeviceSketch(Adder, Sketch, Protocol):
    """Sketch of pieces, by kernels of a GPU.

    Attributes
    ----------
    windows : WindowLists
        Lists of windows that are folded together.
    """

    windows: WindowLists

    @property
    def scaled(self) -> bool:
        """Tell whether gradients are multiplied with factors."""

    def sheared(self, out: Tensor, outer: Outer) -> tuple[Sheared, torch.dtype] | None:
        """Return how a product is sketched with its rows merged, if that is faster."""


class WaitingPieces(SmallPieces):
    """Pieces of a backward pass on a GPU: products are not formed where that is slower."""

    def __init__(self, projector: DeviceSketch, *given: Any) -> None:
        super().__init__(projector, *given)
        self._sketch, self._windows = projector, WaitingWindows(projector.windows)
        self._tiles = WaitingTiles(projector)

    def add(self, out: Tensor, piece: Piece) -> None:
        if not (isinstance(piece, Outer) and self._added(out, piece)):
            super().add(out, piece)

    def _added(self, out: Tensor, outer: Outer) -> bool:
        """Let a product wait, sheared or formed; tell whether it does."""
        chosen = self._sketch.sheared(out, outer)
        if chosen:
            self._windows.add(out, outer, *chosen)
            return True
        # Factors of a scale are not in the table of those that wait.
        waits = self._waits(out.device) and not self._sketch.scaled
        return waits and self._tiles.add(out, outer)

    def finish(self) -> None:
        self._windows.finish()
        self._tiles.finish()
        super().finish()

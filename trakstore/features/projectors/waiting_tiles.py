"""Gradients of small weights, formed one behind the other in memory and sketched by one kernel.

To start a kernel takes a GPU longer than to sketch the gradient of a small weight, and what its
programs sum is added to the features by another. So such gradients wait, and two kernels do all that
wait. They are memory of this pass alone: nothing that the model may change meanwhile is kept.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from trakstore.features.projectors.pieces import Memory, Outer
from trakstore.features.projectors.products import up_to_aligned

__all__ = ["TilePlace", "WaitingTiles"]

_BYTES = 1 << 27  # of gradients that wait, and of what programs sum of them
_LARGE = 1 << 25  # of a gradient that does not


class TilePlace(NamedTuple):
    """Gradients of some rows of a parameter, in the memory of those that wait.

    Attributes
    ----------
    name : str
        Canonical name of the parameter.
    first_row, rows, columns : int
        Rows of the parameter, which is seen as (first dimension, rest).
    offset, by_sample, by_row : int
        First entry, and strides.
    """

    name: str
    first_row: int
    rows: int
    columns: int
    offset: int
    by_sample: int
    by_row: int


class Sketch(Protocol):
    """Projector that sketches gradients that wait.

    Attributes
    ----------
    tile_room : int
        Entries for which there was memory before. No sum depends on it.
    """

    tile_room: int

    def sums_of(self, batch: int, rows: int, columns: int) -> int:
        """Return the count of numbers that programs sum of a gradient, before features have them."""

    def form(self, out: Tensor, outer: Outer, memory: Memory) -> Tensor:
        """Form the gradients of a product in some memory."""

    def add_tiles(self, out: Tensor, memory: Tensor, places: tuple[TilePlace, ...]) -> None:
        """Add the sketch of gradients that are in some memory."""


class WaitingTiles:
    """Gradients of one backward pass that wait, sketched where there are many, and at its end."""

    def __init__(self, sketch: Sketch) -> None:
        self._sketch = sketch
        self._out: Tensor | None = None
        self._memory: Tensor | None = None
        self._places: list[TilePlace] = []
        self._used = self._sums = 0

    def add(self, out: Tensor, outer: Outer) -> bool:
        """Form a product that is to be added to ``out (batch, dim)``; tell whether it is small."""
        most = outer.batch * up_to_aligned(outer.rows) * up_to_aligned(outer.columns)
        if 4 * most > _LARGE:
            return False
        other = self._out is not None and (
            out.data_ptr() != self._out.data_ptr() or out.shape != self._out.shape
        )
        # Sums are rounded where waiting ends, so that shapes of this batch alone decide where.
        sums = self._sketch.sums_of(len(out), outer.rows, outer.columns)
        if other or 4 * max(self._used + most, self._sums + sums) > _BYTES:
            self.finish()
        self._out, first = out, self._used
        self._sums += sums

        def memory(batch: int, rows: int, columns: int) -> Tensor:
            self._used = first + batch * rows * columns
            return self._grown(out, first)[first : self._used].view(batch, rows, columns)

        tile = self._sketch.form(out, outer, memory)
        own = outer.name, outer.first_row, outer.rows, outer.columns
        self._places.append(TilePlace(*own, first, tile.stride(0), tile.stride(1)))
        return True

    def _grown(self, out: Tensor, first: int) -> Tensor:
        """Return memory for all that wait, the ``first`` entries of which are formed already."""
        held, most = self._memory, _BYTES // 4
        if held is None or self._used > len(held):
            # Twice as much, that little is copied, or as much as was needed before.
            wanted = min(most, max(2 * first, self._sketch.tile_room))
            memory = out.new_empty(max(self._used, wanted))
            if held is not None:
                memory[:first] = held[:first]
            self._memory = held = memory
        return held

    def finish(self) -> None:
        """Sketch what waits."""
        if self._out is not None and self._memory is not None and self._places:
            self._sketch.tile_room = max(self._sketch.tile_room, self._used)
            self._sketch.add_tiles(self._out, self._memory, tuple(self._places))
        self._places, self._used, self._sums, self._memory, self._out = [], 0, 0, None, None

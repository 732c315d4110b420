"""Small products of one backward pass on a GPU: those of equal shapes are multiplied by one kernel.

A gradient that is projected on both sides is a product of two thin factors, with a few rows and columns
for each sample. To multiply them keeps a few of a GPU's processors busy, for hardly longer than it
takes to start a kernel. So factors wait for one another, and are then so many more samples of a single
product. They are memory of this pass alone: nothing that the model may change meanwhile is kept.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from trakstore.features.projectors.collecting import Collecting
from trakstore.features.projectors.pieces import Outer, Piece, Rows
from trakstore.features.projectors.products import Side
from trakstore.features.projectors.shared_rights import SharedRights
from trakstore.features.projectors.thin_factors import ThinFactors

__all__ = ["WaitingProducts"]

_BYTES = 1 << 27  # of factors that wait; while they are stacked there are twice as many
_LARGE = 1 << 22  # of factors that do not: stacking them would take longer than starting a kernel


class TwoSided(Protocol):
    """Projector that makes pieces small before they are sketched."""

    def small(self, piece: Piece) -> Piece:
        """Return the small piece of what a piece is of."""

    def thin(self, outer: Outer, rights: SharedRights) -> ThinFactors | None:
        """Return the factors of a small product; None where one is not in memory of its own."""

    def right_sides(self, outer: Outer) -> tuple[tuple[str, ...], Side]:
        """Return the parameters that have a right factor, and their sides next to one another."""


class _Waiting(NamedTuple):
    out: Tensor
    name: str
    factors: ThinFactors


class WaitingProducts(Collecting):
    """Pieces that are made small and collected, of which products wait for others.

    Parameters
    ----------
    projector : TwoSided
    collecting : Collecting
        Collector of small pieces, which tells whether any wait on a device.
    """

    def __init__(self, projector: TwoSided, collecting: Collecting) -> None:
        self._sides, self._collecting = projector, collecting
        self._rights = SharedRights(projector.right_sides)
        self._waiting: dict[object, list[_Waiting]] = {}
        self._bytes = 0

    def add(self, out: Tensor, piece: Piece) -> None:
        """Add the projection of a piece to ``out (batch, dim)``, now or when all have come."""
        factors: ThinFactors | None = None
        if isinstance(piece, Outer) and self._collecting.waits(out.device):
            factors = self._sides.thin(piece, self._rights)
        if factors is None:
            self._collecting.add(out, self._sides.small(piece))
        elif factors.bytes > _LARGE:
            self._collecting.add(out, Rows(piece.name, factors.multiplied()))
        else:
            self._wait(_Waiting(out, piece.name, factors))

    def _wait(self, one: _Waiting) -> None:
        # The height of a stack decides which kernel multiplies it, and so in which order it sums.
        # Shapes of this batch alone say where waiting ends: a run that goes on has the same bits.
        if self._bytes + one.factors.bytes > _BYTES:
            self._multiply()
        self._bytes += one.factors.bytes
        self._waiting.setdefault(one.factors.kind, []).append(one)

    def _multiply(self) -> None:
        """Multiply all that wait, and pass the products on."""
        waiting, self._waiting, self._bytes = self._waiting, {}, 0
        for pieces in waiting.values():
            products = ThinFactors.stacked([one.factors for one in pieces]).multiplied()
            each = products.split(len(pieces[0].factors.left))
            for (out, name, _), product in zip(pieces, each, strict=True):
                self._collecting.add(out, Rows(name, product))

    def finish(self) -> None:
        """Add the pieces that wait."""
        self._rights.clear()
        self._multiply()
        self._collecting.finish()

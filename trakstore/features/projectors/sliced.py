"""Projections of the parts of gradients that a rank holds, at their true places.

P is a function of the index, so that a part is added at its own place: some rows of the parameter, or
some columns of all rows, with zeros in the neighbouring columns that the projector also needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch.nn.functional as F
from torch import Tensor

from trakstore.features.projectors.collecting import Changed, Collecting
from trakstore.features.projectors.pieces import Gathered, Outer, Piece, Rows
from trakstore.features.projectors.projector import Projector
from trakstore.features.sharding import Span

__all__ = ["Sliced"]


class Sliced(Projector):
    """A projector that is given parts of gradients.

    Parameters
    ----------
    projector : Projector
        Projector of whole gradients.
    spans : mapping of name to Span
        Part of each parameter that is not whole here.
    """

    def __init__(self, projector: Projector, spans: Mapping[str, Span]) -> None:
        self.spec, self.shapes = projector.spec, projector.shapes
        self.matrices, self.first_columns = projector.matrices, projector.first_columns
        columns = {name: (one.start, one.stop) for name, one in spans.items() if one.dim}
        self._projector, self._spans = projector.of_columns(columns), spans

    @property
    def dim(self) -> int:
        """Number of features."""
        return self._projector.dim

    def collecting(self) -> Collecting:
        """See :meth:`Projector.collecting`: parts are put in their places, and collected as wholes."""
        return Changed(self._placed, self._projector.collecting())

    def add(self, out: Tensor, name: str, tile: Tensor, first_row: int = 0) -> None:
        """Add the projection of a part's tile; see :meth:`Projector.add`."""
        self.add_piece(out, Rows(name, tile, first_row))

    def add_piece(self, out: Tensor, piece: Piece) -> None:
        """Add the projection of a part of a parameter's gradients, formed or not."""
        self._projector.add_piece(out, self._placed(piece))

    def _placed(self, piece: Piece) -> Piece:
        """Return a part of a parameter's gradients as a piece of the whole."""
        span = self._spans.get(piece.name)
        if span is None:
            return piece
        if isinstance(piece, Rows):
            return self._rows(piece, span)
        return (
            self._gathered(piece, span) if isinstance(piece, Gathered) else self._outer(piece, span)
        )

    def _rows(self, rows: Rows, span: Span) -> Rows:
        name, tile, first_row = rows
        self._need_part(name, tile.shape[2] if span.dim else first_row + tile.shape[1], span)
        if span.dim:
            return Rows(name, self._wide(tile, name, span), first_row)
        return Rows(name, tile, span.start + first_row)

    def _gathered(self, gathered: Gathered, span: Span) -> Gathered:
        if not span.dim:
            return gathered  # all ranks have the rows that an index picks, of all tokens
        self._need_part(gathered.name, gathered.values.shape[2], span)
        values = self._wide(gathered.values, gathered.name, span)
        return Gathered(gathered.name, gathered.index, values)

    def _outer(self, outer: Outer, span: Span) -> Outer:
        if not span.dim:
            self._need_part(outer.name, outer.first_row + outer.rows, span)
            return outer._replace(first_row=span.start + outer.first_row)
        self._need_part(outer.name, outer.columns, span)
        widened = partial(self._made_wide, outer.make_right, outer.name, span)
        columns = self._projector.matrices[outer.name][1]
        # The faster forms of the factor lack the columns of other ranks, and the widened factor differs
        # between parameters: both are left out.
        placed = outer._replace(make_right=widened, columns=columns, beside=())
        return placed._replace(filtered=None, unfolded=None)

    def _made_wide(
        self, make: Callable[[int, int], Tensor], name: str, span: Span, start: int, stop: int
    ) -> Tensor:
        return self._wide(make(start, stop), name, span)

    def _wide(self, part: Tensor, name: str, span: Span) -> Tensor:
        """Put zeros in the columns of other ranks that the projector wants."""
        first = self._projector.first_columns.get(name, 0)
        last = first + self._projector.matrices[name][1]
        return F.pad(part, (span.start - first, last - span.stop))

    def _need_part(self, name: str, size: int, span: Span) -> None:
        if size > span.stop - span.start:
            raise RuntimeError(f"{size} rows or columns of {name}, of which this rank has {span}")

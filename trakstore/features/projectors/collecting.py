"""Pieces of one backward pass, added as they come, or the small ones together at its end.

A bias or a scale has few entries, and on a GPU a kernel for each takes longer to start than to run.
There their gradients are laid side by side, and one kernel adds all of them, by lists of the entries
that fall on each feature.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from trakstore.features.projectors.pieces import Piece, Rows

__all__ = ["Changed", "Collecting", "Listed", "Place", "SmallPieces"]

_SMALL = 1 << 16  # entries of a piece that waits for others

Place = tuple[str, int, int]  # a parameter, and its first and last row


class Adder(Protocol):
    """An owner of a projection, to which pieces are added."""

    def add_piece(self, out: Tensor, piece: Piece) -> None:
        """Add the projection of a piece."""


class Listed(NamedTuple):
    """Entries that fall on each feature, for pieces that lie side by side.

    Attributes
    ----------
    first : Tensor, int32, shape (dim + 1,)
        Where the entries of each feature begin in the next two.
    entries, values : Tensor, int32 and float32, shape (all,)
        Entries by their place among all, and what they are multiplied with.
    """

    first: Tensor
    entries: Tensor
    values: Tensor

    @classmethod
    def of(cls, columns: list[Tensor], values: list[Tensor], dim: int) -> Listed:
        """Sort the entries of copies: ``columns`` and ``values`` are those of all entries, in order."""
        column, value = torch.cat(columns), torch.cat(values)
        entry = torch.arange(len(columns[0]), device=column.device).repeat(len(columns))
        # Where they are, as a GPU sorts them faster than a list is sent there.
        column, order = column.sort(stable=True)
        first = torch.searchsorted(column, torch.arange(dim + 1).to(column))
        return cls(first.to(torch.int32), entry[order].to(torch.int32), value[order])


class Collecting:
    """Pieces of one backward pass, each added as it comes."""

    def __init__(self, projector: Adder) -> None:
        self._projector = projector

    def add(self, out: Tensor, piece: Piece) -> None:
        """Add the projection of a piece to ``out (batch, dim)``, now or when all have come."""
        self._projector.add_piece(out, piece)

    def waits(self, device: torch.device) -> bool:  # noqa: ARG002
        """Tell whether pieces wait on a device."""
        return False

    def finish(self) -> None:
        """Add the pieces that wait."""


class Changed(Collecting):
    """Pieces that are first converted, and then collected by another projector.

    Parameters
    ----------
    change : callable
        Function that returns the piece to collect for a given one.
    collecting : Collecting
        Collector of the converted pieces.
    """

    def __init__(self, change: Callable[[Piece], Piece], collecting: Collecting) -> None:
        self._change, self._collecting = change, collecting

    def add(self, out: Tensor, piece: Piece) -> None:
        """Add the projection of a piece after converting it."""
        self._collecting.add(out, self._change(piece))

    def finish(self) -> None:
        """Add the pieces that wait."""
        self._collecting.finish()


class SmallPieces(Collecting):
    """Pieces of one backward pass, of which small ones wait for the others.

    Parameters
    ----------
    projector : Adder
    add_listed : callable
        ``add_listed(out, places, entries)`` adds ``entries (batch, all)``, float32, of some parameters'
        rows, one after another.
    waits : callable
        Tells whether pieces wait on a device; otherwise each is added as it comes.
    """

    def __init__(
        self,
        projector: Adder,
        add_listed: Callable[[Tensor, tuple[Place, ...], Tensor], None],
        waits: Callable[[torch.device], bool],
    ) -> None:
        super().__init__(projector)
        self._add_listed, self._waits = add_listed, waits
        self._waiting: dict[tuple[int, torch.Size], tuple[Tensor, list[Rows]]] = {}

    def add(self, out: Tensor, piece: Piece) -> None:
        """Add the projection of a piece to ``out (batch, dim)``, now or when all have come."""
        if not isinstance(piece, Rows) or not self._wait(out, piece):
            super().add(out, piece)
            return
        _, pieces = self._waiting.setdefault((out.data_ptr(), out.shape), (out, []))
        pieces.append(piece)

    def waits(self, device: torch.device) -> bool:
        """See :meth:`Collecting.waits`."""
        return self._waits(device)

    def _wait(self, out: Tensor, rows: Rows) -> bool:
        return rows.tile[0].numel() <= _SMALL and self._waits(out.device)

    def finish(self) -> None:
        """Add the pieces that wait, all of one output at once."""
        waiting, self._waiting = self._waiting, {}
        for out, pieces in waiting.values():
            if len(pieces) == 1:
                with torch.cuda.device_of(out):
                    super().add(out, pieces[0])
                continue
            places = tuple((p.name, p.first_row, p.first_row + p.tile.shape[1]) for p in pieces)
            entries = torch.cat([piece.tile.flatten(1).to(torch.float32) for piece in pieces], 1)
            # A kernel runs on the current device, which may be that of another layer.
            with torch.cuda.device_of(out):
                self._add_listed(out, places, entries)

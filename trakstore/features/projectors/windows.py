"""Windows of many products, laid one behind the other and folded at once."""

from __future__ import annotations

import torch
from torch import Tensor

from trakstore.features.projectors.pieces import Outer, part
from trakstore.features.projectors.sheared import WINDOW, Sheared, Windows
from trakstore.planning import ranges

__all__ = ["WaitingWindows", "WindowLists"]

_BYTES = 1 << 28  # of windows that wait, and of factors of the samples that are done at once


class WindowLists:
    """Lists of windows that a projector keeps from batch to batch, and how many there were.

    Parameters
    ----------
    dim : int
    scale : float
        Factor of all windows.
    """

    def __init__(self, dim: int, scale: float) -> None:
        self.dim, self.scale, self.most = dim, scale, 0
        self._lists: dict[tuple[Sheared, ...], Windows] = {}

    def of(self, tables: tuple[Sheared, ...], device: torch.device) -> Windows:
        """Return the lists of some tables' windows, made once."""
        if tables not in self._lists:
            self._lists[tables] = Windows.of(tables, self.dim, device)
        return self._lists[tables]


class WaitingWindows:
    """Windows of one backward pass, folded where there are many, and at its end."""

    def __init__(self, lists: WindowLists) -> None:
        self._lists, self._total = lists, 0
        self._out: Tensor | None = None
        self._windows: Tensor | None = None
        self._tables: list[Sheared] = []
        self._used = 0

    def add(self, out: Tensor, outer: Outer, table: Sheared, dtype: torch.dtype) -> None:
        """Write the windows of a product that is to be added to ``out (batch, dim)``."""
        for samples in ranges(outer.batch, max(1, _BYTES // (4 * WINDOW * table.starts.size))):
            self._write(part(out, *samples), outer, table, dtype, samples[0])

    def _write(
        self, out: Tensor, outer: Outer, table: Sheared, dtype: torch.dtype, first: int
    ) -> None:
        """Write the windows of the samples of ``out``, which begin with the product's ``first``."""
        from trakstore.features.projectors.triton.shear import write_windows

        windows = self._place(out, len(out), table.starts.size)
        each = 2 * outer.positions * (table.slots + outer.columns)
        if dtype == torch.float32:  # whose gradients are formed
            each += each + 4 * table.entries
        for start, stop in ranges(len(out), max(1, _BYTES // each)):
            own = first + start, first + stop
            in_place = outer.unfolded is not None and dtype != torch.float32
            make = outer.unfolded if in_place and outer.unfolded else outer.make_right
            right = make(*own)
            left = part(outer.left, *own)
            write_windows(part(windows, start, stop), left, right, table, dtype)
        self._tables.append(table)

    def finish(self) -> None:
        """Fold what waits."""
        self._fold()
        self._lists.most = max(self._lists.most, self._total)

    def _place(self, out: Tensor, batch: int, count: int) -> Tensor:
        """Return memory for windows ``(batch, count, 256)`` behind those that wait."""
        held = self._windows
        other = self._out is not None and (
            out.data_ptr() != self._out.data_ptr() or out.shape != self._out.shape
        )
        if held is None or other or self._used + count > held.shape[1]:
            self._fold()
            most = _BYTES // (4 * WINDOW * batch)
            # As many as there were in the last batch, that is all of them, where memory suffices.
            held = out.new_empty(batch, max(count, min(most, self._lists.most)), WINDOW)
            self._windows, self._out = held, out
        first, self._used = self._used, self._used + count
        self._total += count
        return held[:, first : self._used]

    def _fold(self) -> None:
        from trakstore.features.projectors.triton.shear import fold_windows

        if self._out is not None and self._windows is not None and self._tables:
            lists = self._lists.of(tuple(self._tables), self._out.device)
            fold_windows(self._out, self._windows[:, : self._used], lists, self._lists.scale)
        self._tables, self._used, self._windows, self._out = [], 0, None, None

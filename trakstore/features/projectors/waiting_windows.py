"""Windows of many products, laid one behind the other in halves and folded at once."""

from __future__ import annotations

import torch
from torch import Tensor

from trakstore.features.projectors.pieces import Outer, part
from trakstore.features.projectors.recent import Recent
from trakstore.features.projectors.sheared import FEATURES, Sheared, Windows
from trakstore.planning import ranges

__all__ = ["WaitingWindows", "WindowLists"]

_BYTES = 1 << 28  # of windows that wait, and of factors of the samples that are done at once
_TOGETHER = 1 << 15  # halves of windows of a sample that wait for one another
_LISTS = 64  # that are kept at least


class WindowLists:
    """Lists of windows that a projector keeps from batch to batch, and the memory that they took.

    Parameters
    ----------
    dim : int
    scale : float
        Factor of all windows.
    parameters : int
        Number of parameters. A pass folds hardly more often than it has tables, and those of two
        passes are kept, so that a short batch between others costs no lists.

    Attributes
    ----------
    room : int
        Windows of a sample for which there was memory before. No sum depends on it.
    """

    def __init__(self, dim: int, scale: float, parameters: int = 1) -> None:
        self.dim, self.scale, self.room = dim, scale, 0
        self._lists = Recent[tuple[Sheared, ...], Windows](max(_LISTS, 2 * parameters))

    def of(self, tables: tuple[Sheared, ...], device: torch.device) -> Windows:
        """Return the lists of some tables' windows."""
        return self._lists.of(tables, lambda: Windows.of(tables, self.dim, device))


class WaitingWindows:
    """Windows of one backward pass, folded where there are many, and at its end."""

    def __init__(self, lists: WindowLists) -> None:
        self._lists = lists
        self._out: Tensor | None = None
        self._windows: Tensor | None = None
        self._tables: list[Sheared] = []
        self._used = 0

    def add(self, out: Tensor, outer: Outer, table: Sheared, dtype: torch.dtype) -> None:
        """Write the windows of a product that is to be added to ``out (batch, dim)``."""
        for samples in ranges(outer.batch, max(1, _BYTES // (4 * FEATURES * table.starts.size))):
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

    def _place(self, out: Tensor, batch: int, count: int) -> Tensor:
        """Return memory for windows ``(batch, count, 128)`` behind those that wait."""
        # A fold rounds its sum once, so that the last bits depend on where folds are. Shapes of this
        # batch alone decide that: another worker, or a run that goes on, has not seen the same ones.
        together = min(_TOGETHER, _BYTES // (4 * FEATURES * batch))
        other = self._out is not None and (
            out.data_ptr() != self._out.data_ptr() or out.shape != self._out.shape
        )
        if other or self._used + count > together:
            self.finish()
        self._out, first = out, self._used
        self._used += count
        windows = self._memory(out, batch, first, together)
        return windows[:, first : self._used]

    def _memory(self, out: Tensor, batch: int, first: int, together: int) -> Tensor:
        """Return memory for all windows that wait, the ``first`` of which are written already."""
        held, lists = self._windows, self._lists
        if held is None or self._used > held.shape[1]:
            # Twice as many, that few are copied, or as many as were needed before.
            wanted = max(2 * first, min(lists.room, together))
            windows = out.new_empty(batch, max(self._used, min(wanted, together)), FEATURES)
            if held is not None:
                windows[:, :first] = held[:, :first]
            self._windows = held = windows
        return held

    def finish(self) -> None:
        """Fold what waits."""
        if self._out is not None and self._windows is not None and self._tables:
            # Torch for the CPU comes without Triton, and has no windows to fold.
            from trakstore.features.projectors.triton.fold import fold_windows

            lists = self._lists.of(tuple(self._tables), self._out.device)
            # The next batch takes memory for all of them at once, and copies none.
            self._lists.room = max(self._lists.room, self._used)
            fold_windows(self._out, self._windows[:, : self._used], lists, self._lists.scale)
        self._tables, self._used, self._windows, self._out = [], 0, None, None

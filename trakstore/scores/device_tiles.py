"""Tiles of scores on a GPU, through torch; importing this imports torch."""

from __future__ import annotations

import threading
import weakref
from contextlib import AbstractContextManager
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from trakstore.passes.pinned import Upload, to_device, to_host
from trakstore.passes.rows import Rows

# The device, and the left operands on it, of each window in use.
_ON_DEVICE: weakref.WeakKeyDictionary[Any, tuple[torch.device, list[Tensor]]] = (
    weakref.WeakKeyDictionary()
)
_LOCK = threading.Lock()


class DeviceTiles:
    """Tiles of a :class:`~trakstore.scores.parts.Window`, made on a device one after the other.

    A tile's rows are read and sent while the tile before it is computed. Products are float32, so that
    results equal those of the CPU up to float32 rounding.
    """

    def __init__(self, window: Any, device: str) -> None:
        there = torch.device(device)
        self._window, self._lefts = window, _lefts(window, there)
        own = window.thresholds
        self._thresholds = None if own is None else to_device(own[:, None], there)
        # Scales have memory of their own: small as they are, they would take the place of a tile of
        # features.
        self._features = Upload(there)
        self._columns = Upload(there, self._features.streams)

    def tile(self, start: int, stop: int) -> Tensor:
        """Start computing the scores with train rows start..stop, shape (w, stop - start)."""
        window, total = self._window, None
        for left, train, scale in zip(self._lefts, window.trains, window.scales, strict=True):
            with self._features.widened(train, start, stop) as right:
                if scale is not None:
                    with self._column(scale, start, stop) as column:
                        right = right * column[:, None]
                total = left @ right.T if total is None else total.addmm_(left, right.T)
        assert total is not None  # there is no window without an epoch
        if window.scale is not None:
            with self._column(window.scale, start, stop) as column:
                total *= column
        if self._thresholds is not None:
            total -= total.clamp(-self._thresholds, self._thresholds)
        return total

    def host_tile(self, start: int, stop: int, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Compute the scores with train rows start..stop as a NumPy array, in ``out`` if given."""
        return to_host(self.tile(start, stop), out)

    def _column(self, scale: Rows, start: int, stop: int) -> AbstractContextManager[Tensor]:
        return self._columns.widened(scale, start, stop)


def _lefts(window: Any, device: torch.device) -> list[Tensor]:
    """Return the left operands on the device, which are sent there once for all tiles."""
    # Without the lock, tasks that begin together would each send them.
    with _LOCK:
        kept = _ON_DEVICE.get(window)
        if kept is None or kept[0] != device:
            kept = (device, [to_device(left, device) for left in window.lefts])
            _ON_DEVICE[window] = kept
        return kept[1]

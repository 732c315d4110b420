"""Tiles on a GPU through torch, which is imported here and only when a GPU is asked for."""

from __future__ import annotations

import warnings
import weakref
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray


class NoDeviceWarning(UserWarning):
    """A device that this process cannot use, so that it works on the CPU."""


# The device and the left operands there of each window that is in use.
_ON_DEVICE: weakref.WeakKeyDictionary[Any, tuple[str, list[Any]]] = weakref.WeakKeyDictionary()


@cache
def usable_device(device: str) -> str:
    """Return ``device`` if torch can use it in this process, else ``"cpu"`` with a warning (once)."""
    if device == "cpu":
        return device
    try:
        import torch

        torch.zeros(1, device=device)
    except (ImportError, RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        warnings.warn(
            f"device {device!r} cannot be used here ({reason}): tiles are computed on the CPU",
            NoDeviceWarning,
            stacklevel=2,
        )
        return "cpu"
    return device


def torch_tile(window: Any, start: int, stop: int, device: str) -> NDArray[np.float32]:
    """Compute the scores of a :class:`~trakstore.scores.parts.Window` with train rows on ``device``.

    Features travel as they are stored and become float32 on the device; products are float32 (no
    TF32), so the numbers are those of the CPU to float32 rounding.
    """
    import torch

    lefts = _lefts(window, device)
    total: Any = None
    for left, train, scale in zip(lefts, window.trains, window.scales, strict=True):
        right = _moved(train.read(start, stop), device).to(torch.float32)
        if scale is not None:
            # Not in place: on the CPU it may be the caller's own array.
            right = right * _moved(scale.read(start, stop), device).to(torch.float32)[:, None]
        total = left @ right.T if total is None else total.addmm_(left, right.T)
    if window.scale is not None:
        total *= _moved(window.scale.read(start, stop), device).to(torch.float32)
    tile: NDArray[np.float32] = total.cpu().numpy()
    return tile


def _lefts(window: Any, device: str) -> list[Any]:
    """Return the left operands on the device, to which they are sent once for all tiles."""
    kept = _ON_DEVICE.get(window)
    if kept is None or kept[0] != device:
        kept = (device, [_moved(left, device) for left in window.lefts])
        _ON_DEVICE[window] = kept
    return kept[1]


def _moved(array: NDArray[Any], device: str) -> Any:
    import torch

    # torch takes neither arrays that cannot be written nor views with negative strides.
    return torch.from_numpy(np.require(array, requirements=["C", "W"])).to(device)

"""The GPU of this process: whether torch can use it, what is free there, and how it multiplies.

torch is imported here only when a GPU is asked for. A device is named as torch names it. ``"cpu"``
means NumPy; ``"cpu:0"`` is torch on the CPU, by which tests run the code for GPUs.
"""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from trakstore.errors import MemoryLimitError, NumericsError, TrakStoreError
from trakstore.quantities import shown

_DEVICE = re.compile(r"(cpu|cuda)(:[0-9]+)?", re.ASCII)


class NoDeviceWarning(UserWarning):
    """A device that this process cannot use, so that it works on the CPU."""


class NotFiniteError(NumericsError):
    """Values on a GPU that are not finite; the CPU then finds them, and names their rows."""


def as_device(device: object) -> str:
    """Return the name of a device, given as a name or a torch device; it need not exist.

    Raises
    ------
    TrakStoreError
        When it is neither the CPU nor a GPU.

    Examples
    --------
    >>> as_device("cuda:1")
    'cuda:1'
    """
    of_torch = (type(device).__module__, type(device).__name__) == ("torch", "device")
    name = str(device) if of_torch else device
    if not isinstance(name, str) or not _DEVICE.fullmatch(name):
        raise TrakStoreError(
            f"device is 'cuda', 'cuda:1' and the like, or 'cpu', got {shown(device)}"
        )
    return name


@cache
def usable_device(device: str) -> str:
    """Return ``device`` if torch can use it in this process, else ``"cpu"`` with a warning (once).

    Raises
    ------
    TrakStoreError
        When it is neither the CPU nor a GPU.
    """
    if as_device(device) == "cpu":
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


def free_bytes(device: str) -> int | None:
    """Return the bytes that this process may still take on a GPU; None if it works on the CPU."""
    if usable_device(device) == "cpu":
        return None
    import torch

    there = torch.device(device)
    if there.type != "cuda":
        return None
    # Memory that torch keeps after freeing it is available to this process.
    kept = torch.cuda.memory_reserved(there) - torch.cuda.memory_allocated(there)
    return int(torch.cuda.mem_get_info(there)[0] + kept)


@contextmanager
def working_on_gpu(device: str) -> Iterator[None]:
    """Within, compute on a GPU, with exact products of float32.

    Raises
    ------
    MemoryLimitError
        When the GPU has no room left.
    """
    import torch

    there = torch.device(device)
    # Index -1 leaves the current device unchanged.
    current = -1 if there.type != "cuda" or there.index is None else there.index
    try:
        with torch.cuda.device(current), _EXACT:
            yield
    except torch.OutOfMemoryError as error:
        raise MemoryLimitError(
            f"{device} has no room left for a tile, though it had when this began: does another "
            f"program use it? Ask again, or work on the CPU (device='cpu')"
        ) from error


class _ExactProducts:
    """Products of float32 without TF32, from the first thread that enters to the last that leaves.

    TF32 has 10 bits of mantissa. The setting belongs to the process: a thread that enters while another
    is inside must neither save nor restore the setting of that one.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._before: str | None = None

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before = _allowed_tf32()
                if self._before is not None:
                    _set_precision("highest")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0 and self._before is not None:
                _set_precision(self._before)


_EXACT = _ExactProducts()


def _allowed_tf32() -> str | None:
    """Return the setting that allows TF32; None where products are exact already."""
    import torch

    try:
        setting = torch.get_float32_matmul_precision()
    except RuntimeError:
        # torch has two settings that allow TF32, and refuses to read one after the other was changed.
        return "high"
    return None if setting == "highest" else setting


def _set_precision(setting: Any) -> None:
    import torch

    torch.set_float32_matmul_precision(setting)

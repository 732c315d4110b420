"""Copies from a GPU to the CPU, for which nobody waits before they are needed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["gpu_done", "to_host"]


def to_host(tensor: Tensor) -> Tensor:
    """Copy to the CPU; from a GPU into pinned memory, which is filled once :func:`gpu_done` waited."""
    tensor = tensor.detach()
    if not tensor.is_cuda:
        return tensor.cpu()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def gpu_done() -> Callable[[], None]:
    """Return a function that waits until a GPU has done what it was given up to now."""
    if not torch.cuda.is_initialized():
        return lambda: None
    event = torch.cuda.Event(blocking=True)
    event.record()
    return event.synchronize

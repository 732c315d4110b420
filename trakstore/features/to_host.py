"""Copies from a GPU to the CPU in the background, and parts of a block joined there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["gpu_done", "in_order", "to_host"]


def to_host(tensor: Tensor) -> Tensor:
    """Copy to the CPU; from a GPU into pinned memory, to be read after :func:`gpu_done` waited."""
    tensor = tensor.detach()
    if not tensor.is_cuda:
        return tensor.cpu()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def gpu_done() -> Callable[[], None]:
    """Return a function that waits until a GPU has done all work that it was given so far."""
    if not torch.cuda.is_initialized():
        return lambda: None
    event = torch.cuda.Event(blocking=True)
    event.record()
    return event.synchronize


def in_order(parts: list[NDArray[Any]], rows: NDArray[np.int64]) -> NDArray[Any]:
    """Join parts into an array with their rows at positions ``rows``."""
    # Labels may be floats in one batch and integers in another: the common dtype cuts none of them.
    dtype = np.result_type(*(part.dtype for part in parts))
    joined = np.empty((len(rows), *parts[0].shape[1:]), dtype)
    begin = 0
    for part in parts:
        joined[rows[begin : begin + len(part)]] = part
        begin += len(part)
    return joined

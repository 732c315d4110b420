"""Batches on the device of a model."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as tree

__all__ = ["moved"]


def moved(batch: Any, device: torch.device) -> Any:
    """Move a batch to a device; to a GPU from pinned memory, beside what it computes.

    The thread that reads waits for the copy, and nobody else.
    """
    if device.type != "cuda":
        return tree.tree_map(lambda tensor: _usable(tensor.to(device)), batch)
    copies, user = _copies(device), torch.cuda.default_stream(device)
    with torch.cuda.stream(copies):
        pinned = tree.tree_map(lambda tensor: tensor.cpu().pin_memory(), batch)
        there = tree.tree_map(lambda t: t.to(device, non_blocking=True), pinned)
    copies.synchronize()
    for tensor in tree.tree_leaves(there):
        # torch frees memory for the stream that it was taken on. It must not be used again while the
        # stream that computes still reads it.
        tensor.record_stream(user)
    return there


def _usable(tensor: Tensor) -> Tensor:
    """Return a tensor, or a copy of one that was made in inference mode: autograd keeps none such."""
    return tensor.clone() if tensor.is_inference() else tensor


@cache
def _copies(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)

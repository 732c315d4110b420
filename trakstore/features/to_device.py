"""Batches on the device of a model."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as tree

__all__ = ["moved"]


def moved(batch: Any, device: torch.device) -> Any:
    """Move a batch to a device; to a GPU from pinned memory, while that computes.

    Only the thread that reads waits for the copy.
    """
    if device.type != "cuda":
        return tree.tree_map(lambda tensor: _usable(tensor.to(device)), batch)
    copies, user = _copies(device), torch.cuda.default_stream(device)
    with torch.cuda.stream(copies):
        pinned = tree.tree_map(lambda tensor: tensor.cpu().pin_memory(), batch)
        there = tree.tree_map(lambda t: t.to(device, non_blocking=True), pinned)
    copies.synchronize()
    for tensor in tree.tree_leaves(there):
        # torch would give freed memory to other work of the stream that it was taken on, while the
        # computing stream may still read it.
        tensor.record_stream(user)
    return there


def _usable(tensor: Tensor) -> Tensor:
    """Return a tensor, or a copy of one made in inference mode, which autograd could not use."""
    return tensor.clone() if tensor.is_inference() else tensor


@cache
def _copies(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)

"""The sparse sketch in plain torch, for devices without kernels of their own.

A run of k positions falls on the features rotated by its offset, so each feature gathers one position
of each run, and rows are summed: nothing is scattered, whose sums on a GPU differ from run to run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trakstore.planning import ranges

__all__ = ["add_rotated"]

_ENTRIES = 1 << 24  # gathered at once


def add_rotated(out: Tensor, tile: Tensor, offsets: Tensor, signs: Tensor) -> None:
    """Add the sketch of a tile.

    Parameters
    ----------
    out : Tensor, shape (batch, dim), float32
        Changed in place.
    tile : Tensor, shape (batch, rows, rest), float32
        Times the signs of positions.
    offsets, signs : Tensor, shape (rows, runs)
        Of each run, int64 and float32.
    """
    batch, dim = out.shape
    for lo, hi in ranges(tile.shape[1], max(1, _ENTRIES // (batch * dim))):
        for run, (first, last) in enumerate(ranges(tile.shape[2], dim)):
            part = tile[:, lo:hi, first:last]
            out += _rotated(part, offsets[lo:hi, run], signs[lo:hi, run], dim)


def _rotated(part: Tensor, offsets: Tensor, signs: Tensor, dim: int) -> Tensor:
    """One run of some rows, shape (batch, dim)."""
    batch, rows, width = part.shape
    position = (torch.arange(dim, device=part.device) - offsets[:, None]) % dim
    weight = signs[:, None] * (position < width)
    index = position.clamp(max=width - 1).expand(batch, rows, dim)
    return (part.gather(2, index) * weight).sum(1)

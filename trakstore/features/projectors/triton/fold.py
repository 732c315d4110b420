"""Halves of windows of a sparse sketch, added to the features that they fall on in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from trakstore.features.projectors.sheared import FEATURES, Windows

__all__ = ["fold_windows"]

_LISTED = 16  # halves of windows that a program folds at once


@triton.jit(do_not_specialize=("dim",))
def _fold(
    windows,
    by_sample,
    first,
    listed,
    starts,
    out,
    dim,
    by_row,
    scale,
    FEATURES: tl.constexpr,
    LISTED: tl.constexpr,
):
    """Add to each feature what windows have for it, at position ``(m - start) mod dim``."""
    m = tl.program_id(0) * FEATURES + tl.arange(0, FEATURES)
    b = tl.program_id(1).to(tl.int64)
    total = tl.zeros([FEATURES], dtype=tl.float32)
    last = tl.load(first + tl.program_id(0) + 1)
    for i in range(tl.load(first + tl.program_id(0)), last, LISTED):
        at = i + tl.arange(0, LISTED)
        there = at < last
        window = tl.load(listed + at, mask=there, other=0)
        start = tl.load(starts + at, mask=there, other=0)
        position = m[None, :] - start[:, None]
        position = tl.where(position < 0, position + dim, position)
        place = b * by_sample + window.to(tl.int64)[:, None] * FEATURES
        hit = there[:, None] & (position < FEATURES)
        total += tl.sum(tl.load(windows + place + position, mask=hit, other=0.0), 0)
    at = out + b * by_row + m
    tl.store(at, tl.load(at, mask=m < dim, other=0.0) + scale * total, mask=m < dim)


def fold_windows(out: Tensor, windows: Tensor, lists: Windows, scale: float) -> None:
    """Add ``scale`` times what windows have to ``out (batch, dim)``, whose rows are contiguous.

    Parameters
    ----------
    out : Tensor, shape (batch, dim), float32
        Changed in place; dim is at least 256.
    windows : Tensor, shape (batch, halves, 128), float32
    lists : Windows
        Lists of these windows.
    scale : float
        1/√s.
    """
    with torch.cuda.device_of(out):
        _fold[(triton.cdiv(out.shape[1], FEATURES), len(out))](
            windows,
            windows.stride(0),
            *lists,
            out,
            out.shape[1],
            out.stride(0),
            scale,
            FEATURES=FEATURES,
            LISTED=_LISTED,
        )

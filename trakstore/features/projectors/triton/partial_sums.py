"""Partial sums of programs that share an output, added to it in one order and one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["add_partial_sums"]

_FEATURES, _SHARES = 128, 16  # of a program, and sums that it takes at once


@triton.jit(do_not_specialize=("batch", "shares", "dim", "by_row"))
def _add(
    partial,
    out,
    batch,
    shares,
    dim,
    by_row,
    scale,
    FEATURES: tl.constexpr,
    SHARES: tl.constexpr,
):
    m = tl.program_id(0) * FEATURES + tl.arange(0, FEATURES)
    b = tl.program_id(1).to(tl.int64)
    inside = (m < dim)[None, :]
    total = tl.zeros([FEATURES], dtype=tl.float32)
    for first in range(0, shares, SHARES):
        share = (first + tl.arange(0, SHARES))[:, None]
        place = (share * batch + b) * dim + m[None, :]
        total += tl.sum(tl.load(partial + place, mask=inside & (share < shares), other=0.0), 0)
    at = out + b * by_row + m
    tl.store(at, tl.load(at, mask=m < dim, other=0.0) + scale * total, mask=m < dim)


def add_partial_sums(out: Tensor, partial: Tensor, scale: float) -> None:
    """Add ``scale`` times the sum of ``partial (shares, batch, dim)`` to ``out (batch, dim)``."""
    shares, batch, dim = partial.shape
    with torch.cuda.device_of(out):
        _add[(triton.cdiv(dim, _FEATURES), batch)](
            partial,
            out,
            batch,
            shares,
            dim,
            out.stride(0),
            scale,
            FEATURES=_FEATURES,
            SHARES=_SHARES,
        )

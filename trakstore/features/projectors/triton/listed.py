"""Small pieces of many parameters, sketched by one kernel: a feature sums the entries of its list."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from trakstore.features.projectors.collecting import Listed

__all__ = ["add_listed"]

_SAMPLES, _FEATURES = 8, 64  # of a program


@triton.jit(do_not_specialize=("batch", "count", "dim", "by_row"))
def _add(
    entries,
    first,
    listed,
    values,
    out,
    batch,
    count,
    dim,
    by_row,
    SAMPLES: tl.constexpr,
    FEATURES: tl.constexpr,
):
    """Add to ``out (batch, dim)`` the sums of ``entries (batch, count)`` that each list has."""
    m = tl.program_id(0) * FEATURES + tl.arange(0, FEATURES)
    b = (tl.program_id(1) * SAMPLES + tl.arange(0, SAMPLES))[:, None].to(tl.int64)
    inside = m < dim
    start = tl.load(first + m, mask=inside, other=0)
    length = tl.load(first + m + 1, mask=inside, other=0) - start
    total = tl.zeros([SAMPLES, FEATURES], dtype=tl.float32)
    for i in range(0, tl.max(length, 0)):
        there = i < length
        entry = tl.load(listed + start + i, mask=there, other=0)[None, :]
        value = tl.load(values + start + i, mask=there, other=0.0)[None, :]
        g = tl.load(entries + b * count + entry, mask=there[None, :] & (b < batch), other=0.0)
        total += g * value
    at, kept = out + b * by_row + m[None, :], inside[None, :] & (b < batch)
    tl.store(at, tl.load(at, mask=kept, other=0.0) + total, mask=kept)


def add_listed(out: Tensor, entries: Tensor, lists: Listed) -> None:
    """Add the sketch of ``entries (batch, count)``, float32, contiguous, to ``out (batch, dim)``."""
    batch, dim = out.shape
    with torch.cuda.device_of(out):
        _add[(triton.cdiv(dim, _FEATURES), triton.cdiv(batch, _SAMPLES))](
            entries,
            *lists,
            out,
            batch,
            entries.shape[1],
            dim,
            out.stride(0),
            SAMPLES=_SAMPLES,
            FEATURES=_FEATURES,
            num_warps=2,
        )

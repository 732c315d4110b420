"""Sums over positions of gradients, and of their products with activations: one reading of both."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["position_sums"]

_KEPT, _POSITIONS = 64, 64  # of a program, and positions that it reads at once


@triton.jit(do_not_specialize=("positions", "kept", "eps"))
def _sums(
    gradient,
    x,
    mean,
    variance,
    eps,
    products,
    sums,
    positions,
    kept,
    by_sample,
    by_position,
    by_kept,
    x_by_sample,
    x_by_position,
    x_by_kept,
    NORMALISED: tl.constexpr,
    SUMS: tl.constexpr,
    KEPT: tl.constexpr,
    POSITIONS: tl.constexpr,
):
    k = tl.program_id(0) * KEPT + tl.arange(0, KEPT)
    b, t = tl.program_id(1).to(tl.int64), tl.arange(0, POSITIONS)
    inside = k < kept
    product = tl.zeros([POSITIONS, KEPT], dtype=tl.float32)
    total = product
    if NORMALISED:
        middle = tl.load(mean + k, mask=inside, other=0.0).to(tl.float32)[None, :]
    for first in range(0, positions, POSITIONS):
        at = first + t
        own = (at < positions)[:, None] & inside[None, :]
        here = gradient + b * by_sample + at[:, None] * by_position + k[None, :] * by_kept
        there = x + b * x_by_sample + at[:, None] * x_by_position + k[None, :] * x_by_kept
        g = tl.load(here, mask=own, other=0.0).to(tl.float32)
        value = tl.load(there, mask=own, other=0.0).to(tl.float32)
        if NORMALISED:
            # Not rounded to 16 bits, as numbers that are written would be, and first of all the mean
            # goes, beside which the rest may be small. Beyond the last position the gradient is zero.
            value -= middle
        product += g * value
        if SUMS:
            total += g
    summed = tl.sum(product, 0)
    if NORMALISED:
        spread = tl.load(variance + k, mask=inside, other=1.0).to(tl.float32)
        summed = summed / tl.sqrt(spread + eps)
    tl.store(products + b * kept + k, summed, mask=inside)
    if SUMS:
        tl.store(sums + b * kept + k, tl.sum(total, 0), mask=inside)


def position_sums(
    gradient: Tensor,
    x: Tensor,
    alone: bool,
    statistics: tuple[Tensor, Tensor, float] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return sums of ``gradient·x`` over positions, and of ``gradient`` where they are asked for.

    Parameters
    ----------
    gradient, x : Tensor, shape (batch, positions, kept)
        Any strides.
    alone : bool
        Whether the second sums are asked for. Otherwise they are not computed.
    statistics : tuple of Tensor, Tensor and float, optional
        Mean and variance of ``x``, each ``(kept,)``, and what is added to the variance: ``x`` is
        normalised by them as it is read.

    Returns
    -------
    products, sums : Tensor, shape (batch, kept), float32
    """
    batch, positions, kept = gradient.shape
    products, sums = torch.empty(2, batch, kept, dtype=torch.float32, device=gradient.device)
    mean, variance, eps = statistics or (gradient, gradient, 0.0)
    with torch.cuda.device_of(gradient):
        _sums[(triton.cdiv(kept, _KEPT), batch)](
            gradient,
            x,
            mean,
            variance,
            eps,
            products,
            sums,
            positions,
            kept,
            *gradient.stride(),
            *x.stride(),
            NORMALISED=statistics is not None,
            SUMS=alone,
            KEPT=_KEPT,
            POSITIONS=_POSITIONS,
        )
    return products, sums

"""Sums over positions, for the gradients of scales and biases of a layer."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from trakstore.features.projectors.triton import usable

__all__ = ["Statistics", "position_sums"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Statistics(NamedTuple):
    """Mean and variance by which activations are normalised.

    Attributes
    ----------
    mean, variance : Tensor, shape (kept,)
    eps : float
        Added to the variance.
    """

    mean: Tensor
    variance: Tensor
    eps: float


def position_sums(
    gradient: Tensor,
    x: Tensor,
    channels: bool,
    alone: bool,
    statistics: Statistics | None = None,
) -> tuple[Tensor, Tensor] | None:
    """Return sums over positions of ``gradient·x``, and of ``gradient``; None except on a GPU.

    There one kernel reads both once, and sums products that are not rounded to 16 bits.

    Parameters
    ----------
    gradient, x : Tensor, shape (batch, each, ..., kept), or (batch, 1, kept, ...) for channels
    channels : bool
        Whether the kept dimension is that of channels rather than the last.
    alone : bool
        Whether the second sums are needed; otherwise they are empty.
    statistics : Statistics, optional
        Statistics of ``x``: the kernel normalises it as it reads it, so that it is never written.

    Returns
    -------
    products, sums : Tensor, shape (batch, kept), float32
    """
    if not usable(gradient.device) or gradient.ndim < 3:
        return None
    alike = gradient.shape == x.shape and gradient.dtype in _DTYPES and x.dtype in _DTYPES
    if not alike or (channels and gradient.shape[1] != 1):
        return None
    from trakstore.features.projectors.triton.position_sums import position_sums

    if channels:
        # Rows without further dimensions have one position.
        gradient, x = (one.flatten(0, 1).unsqueeze(2).flatten(2).mT for one in (gradient, x))
    else:
        gradient, x = gradient.flatten(1, -2), x.flatten(1, -2)
    return position_sums(gradient, x, alone, statistics)

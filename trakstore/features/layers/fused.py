"""Sums over positions that need no tensor in between, on the CPU: memory is what they wait for."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trakstore.features.projectors.loops import compiled
from trakstore.features.projectors.threads import shared

__all__ = ["layer_norm_sums"]

_EACH = 0.7  # nanoseconds a value

_Float = NDArray[np.float32]


def layer_norm_sums(x: Tensor, gradient: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Gradients of a layer norm's scale and bias, float32.

    Parameters
    ----------
    x, gradient : Tensor, shape (batch, positions, width), float32, on the CPU
        Input of the layer, and the gradient of its output.
    eps : float
        Added to the variance.

    Returns
    -------
    scale, bias : Tensor, shape (batch, width)
    """
    values, slopes = x.contiguous().numpy(), gradient.contiguous().numpy()
    scale, bias = (torch.zeros(len(x), x.shape[2], dtype=torch.float32) for _ in range(2))

    def work(start: int, stop: int) -> None:
        each = slice(start, stop)
        _layer_norm(values[each], slopes[each], eps, scale.numpy()[each], bias.numpy()[each])

    shared(len(x), x.numel() * _EACH, work)
    return scale, bias


@compiled
def _layer_norm(
    x: _Float, gradient: _Float, eps: float, scale: _Float, bias: _Float
) -> None:  # pragma: no cover
    # Mean and variance are computed again, as those of the forward pass are not kept; the variance in
    # a second pass over the row, since E[x²] - mean² loses its digits where the mean is large.
    batch, positions, width = x.shape
    for b in range(batch):
        a, c = scale[b], bias[b]
        for t in range(positions):
            row, slope = x[b, t], gradient[b, t]
            total = np.float32(0)
            for j in range(width):
                total += row[j]
            mean = total / np.float32(width)
            total = np.float32(0)
            for j in range(width):
                total += (row[j] - mean) * (row[j] - mean)
            factor = np.float32(1 / np.sqrt(total / np.float32(width) + eps))
            for j in range(width):
                a[j] += slope[j] * (row[j] - mean) * factor
                c[j] += slope[j]

"""Windows of a convolution, laid out for products."""

from __future__ import annotations

from torch import Tensor

__all__ = ["unfold"]

_FEW = 64  # positions, up to which windows are rows in memory


def unfold(
    x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> Tensor:
    """Windows of a padded input.

    Parameters
    ----------
    x : Tensor, shape (n, channels, *sizes)

    Returns
    -------
    Tensor, shape (n, positions, channels * kernel)
        Contiguous where positions are few; otherwise each column is.
    """
    dims = range(len(kernel))
    out = [(x.shape[2 + i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in dims]
    strides = x.stride()
    steps = [strides[2 + i] * stride[i] for i in dims]
    taps = [strides[2 + i] * dilation[i] for i in dims]
    n, channels = x.shape[:2]
    positions = 1
    for size in out:
        positions *= size
    if positions <= _FEW:
        view = x.as_strided((n, *out, channels, *kernel), (strides[0], *steps, strides[1], *taps))
        return view.reshape(n, positions, -1)
    view = x.as_strided((n, channels, *kernel, *out), (strides[0], strides[1], *taps, *steps))
    return view.reshape(n, -1, positions).transpose(1, 2)

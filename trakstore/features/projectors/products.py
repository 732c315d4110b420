"""Products of factors as a GPU's tensor cores want them: in 16 bits, aligned, summed in float32.

A kernel that reads 16 bytes at once needs rows of memory that begin at multiples of 8 numbers; with any
other row torch takes one that reads number by number, at a quarter of the speed.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["ALIGNED", "Side", "aligned", "low_dtype", "times", "up_to_aligned", "wide_bmm"]

ALIGNED = 8  # numbers of 16 bits that are read at once

_WIDER = "dtype" in torch.ops.aten.bmm.overloads()  # products in a wider dtype: torch 2.8
_DEVICES = ("cuda", "meta")  # on meta tensors work is counted, which counts as on a GPU


def low_dtype(left: Tensor, right: Tensor) -> torch.dtype | None:
    """Return the 16-bit dtype in which two factors are multiplied; None for float32.

    bfloat16 where either is, as in training under autocast; float16 only where both are, as other
    numbers might not be in its range. On the CPU products are in float32.

    Examples
    --------
    >>> low_dtype(torch.ones(1, dtype=torch.bfloat16), torch.ones(1)) is None  # not on a GPU
    True
    """
    if not (left.device.type in _DEVICES and _WIDER):
        return None
    dtypes = {left.dtype, right.dtype}
    if torch.bfloat16 in dtypes:
        return torch.bfloat16
    return torch.float16 if dtypes == {torch.float16} else None


def up_to_aligned(count: int) -> int:
    """Return the next multiple of 8.

    Examples
    --------
    >>> up_to_aligned(8), up_to_aligned(9)
    (8, 16)
    """
    return -(-count // ALIGNED) * ALIGNED


def aligned(factor: Tensor) -> Tensor:
    """Return a factor whose rows in memory are aligned: itself, or a copy with zeros behind.

    Parameters
    ----------
    factor : Tensor, shape (batch, positions, n)

    Returns
    -------
    Tensor, shape (batch, positions, n or the next multiple of 8)
    """
    by_sample, by_position, by_entry = factor.stride()
    turned = by_position == 1 and by_entry != 1
    pitch = by_entry if turned else by_position
    starts = factor.storage_offset() % ALIGNED == by_sample % ALIGNED == pitch % ALIGNED == 0
    if starts and 1 in (by_entry, by_position) and factor.shape[1 if turned else 2] % ALIGNED == 0:
        return factor
    batch, positions, count = factor.shape
    padded = factor.new_zeros(batch, positions, up_to_aligned(count))
    padded[:, :, :count] = factor
    return padded


def wide_bmm(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """Multiply stacks ``(b, m, k)`` and ``(b, k, n)`` of one dtype with sums in float32."""
    if left.dtype == torch.float32:
        return torch.bmm(left, right, out=out)
    return torch.bmm(left, right, out_dtype=torch.float32, out=out)


class Side(NamedTuple):
    """A matrix ``(c, d)`` that factors are multiplied with, and the same in 16 bits, made once.

    Numbers in 16 bits are divided by ``unit``, that of signs, which are then 1 and -1 and exact.
    """

    whole: Tensor
    unit: float
    low: dict[torch.dtype, Tensor]

    @classmethod
    def of(cls, matrix: Tensor) -> Side:
        """Take a float32 matrix whose numbers are about as large as signs over the root of columns."""
        unit = matrix.shape[1] ** -0.5
        return cls(matrix, unit, {})

    def in_units(self, dtype: torch.dtype) -> Tensor:
        """Return the matrix over its unit, in 16 bits."""
        if dtype not in self.low:
            self.low[dtype] = (self.whole / self.unit).to(dtype)
        return self.low[dtype]


def times(stacked: Tensor, side: Side, rows: slice = slice(None)) -> tuple[Tensor, float]:
    """Multiply a factor ``(a, b, c)`` with some rows of a side ``(c, d)``: the product and its unit.

    On a GPU a factor in 16 bits stays so, and the matrix is rounded to it.

    Returns
    -------
    Tensor, shape (a, b, d), float32
    float
        Number that the product is still to be multiplied with.
    """
    low = low_dtype(stacked, stacked)
    if low is None:
        return _product(stacked.to(torch.float32), side.whole[rows]), 1.0
    return _product(stacked, side.in_units(low)[rows]), side.unit


def _product(stacked: Tensor, matrix: Tensor) -> Tensor:
    # One product where nothing is copied for it.
    if not stacked.is_contiguous():
        if stacked.dtype == torch.float32:
            return stacked @ matrix
        return wide_bmm(stacked, matrix.expand(len(stacked), *matrix.shape))
    rows = stacked.view(-1, stacked.shape[2])
    if rows.dtype == torch.float32:
        product = torch.mm(rows, matrix)
    else:
        product = torch.mm(rows, matrix, out_dtype=torch.float32)
    return product.view(*stacked.shape[:2], -1)

"""Factors of a small product: of a layer's gradients that are projected on both sides, for instance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["ThinFactors"]


class ThinFactors(NamedTuple):
    """Factors of small gradients, unit · Σ_t left[b, t] ⊗ right[b, t], float32.

    Attributes
    ----------
    left : Tensor, shape (batch, positions, rows)
    right : Tensor, shape (batch, positions, columns)
    unit : float
        Number that the product is multiplied with.
    """

    left: Tensor
    right: Tensor
    unit: float

    @classmethod
    def stacked(cls, each: Sequence[ThinFactors]) -> ThinFactors:
        """Lay factors of one kind behind one another, as more samples."""
        if len(each) == 1:
            return each[0]
        left, right = torch.cat([one.left for one in each]), torch.cat([one.right for one in each])
        return cls(left, right, each[0].unit)

    @property
    def kind(self) -> tuple[torch.Size, torch.Size, float, torch.device]:
        """All that factors have in common that can be stacked."""
        return self.left.shape, self.right.shape, self.unit, self.left.device

    @property
    def bytes(self) -> int:
        """Memory that both take."""
        return self.left.nbytes + self.right.nbytes

    def multiplied(self) -> Tensor:
        """Return the product, ``(batch, rows, columns)``."""
        left, right, unit = self.left.transpose(1, 2), self.right, self.unit
        if left.shape[2] == 1:  # a column times a row, which sums nothing
            product = left * right
            return product if unit == 1 else product.mul_(unit)
        if unit == 1:
            return left @ right
        empty = left.new_empty(1, 1, 1)  # that counts for nothing
        return torch.baddbmm(empty, left, right, beta=0, alpha=unit)

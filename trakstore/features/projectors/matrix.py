"""The projection as a matrix that people can look at: its rows are computed, and never held."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from trakstore.errors import TrakStoreError
from trakstore.features.projectors.projector import Projector
from trakstore.planning import ranges

__all__ = ["ProjectionMatrix"]

_ROWS = 256  # rows that are computed at once


@dataclass(frozen=True, eq=False)
class ProjectionMatrix:
    """Pᵀ, of shape (parameters, dim): features are flattened gradients times this.

    Rows are computed when they are asked for: ``matrix[5]``, ``matrix[:100]`` and ``matrix[:100, :8]``
    give tensors.
    """

    projector: Projector

    @property
    def shape(self) -> torch.Size:
        """Numbers of parameters (scalars) and of features."""
        count = sum(prod(shape) for shape in self.projector.shapes.values())
        return torch.Size((count, self.projector.dim))

    def project(self, vectors: Tensor) -> Tensor:
        """Multiply flattened gradients with the matrix, shapes (batch, parameters) -> (batch, dim).

        Raises
        ------
        TrakStoreError
            For vectors of another length.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self.shape[0]:
            raise TrakStoreError(
                f"needed flattened gradients of shape (batch, {self.shape[0]}), got "
                f"{tuple(vectors.shape)}"
            )
        shapes = self.projector.shapes
        parts = vectors.split([prod(shape) for shape in shapes.values()], dim=1)
        gradients = {
            name: part.reshape(len(vectors), *shape)
            for (name, shape), part in zip(shapes.items(), parts, strict=True)
        }
        return self.projector.project(gradients)

    def __getitem__(self, index: int | slice | tuple[int | slice, int | slice]) -> Tensor:
        rows, columns = index if isinstance(index, tuple) else (index, slice(None))
        chosen = range(self.shape[0])[rows]
        if isinstance(chosen, range):
            return self._rows(chosen)[:, columns]
        return self._rows(range(chosen, chosen + 1))[0, columns]

    def norm(self) -> Tensor:
        """Compute the Frobenius norm, about sqrt(parameters); every row is computed once for that."""
        total = torch.zeros((), dtype=torch.float64)
        for start, stop in ranges(self.shape[0], _ROWS):
            total += self._rows(range(start, stop)).double().square().sum()
        return total.sqrt().float()

    def _rows(self, chosen: range) -> Tensor:
        rows = torch.zeros(len(chosen), self.shape[1], dtype=torch.float32)
        for start, stop in ranges(len(chosen), _ROWS):
            # A row of Pᵀ is the projection of a gradient that is 1 in one entry.
            units = torch.zeros(stop - start, self.shape[0], dtype=torch.float32)
            units[torch.arange(stop - start), torch.tensor(chosen[start:stop])] = 1
            rows[start:stop] = self.project(units)
        return rows

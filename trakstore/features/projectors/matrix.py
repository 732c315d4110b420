"""The projection matrix as people look at it: never held, its rows computed when asked for."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from trakstore.errors import TrakStoreError
from trakstore.features.projectors import Projector
from trakstore.planning import ranges
from trakstore.quantities import as_whole

__all__ = ["ProjectionMatrix"]

_ROWS = 256  # of the matrix that are computed at once


@dataclass(frozen=True, eq=False)
class ProjectionMatrix:
    """Pᵀ, of shape (parameters, proj_dim): features are flattened gradients times this.

    Slices of rows are computed; ``matrix[5]``, ``matrix[:100]``, ``matrix[:100, :8]`` give tensors.
    """

    projector: Projector

    @property
    def shape(self) -> torch.Size:
        """(parameters, proj_dim)."""
        count = sum(prod(shape) for shape in self.projector.shapes.values())
        return torch.Size((count, self.projector.dim))

    def project(self, vectors: Tensor) -> Tensor:
        """Flattened gradients times the matrix, shapes (batch, parameters) -> (batch, proj_dim).

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
        gradients, at = {}, 0
        for name, shape in self.projector.shapes.items():
            gradients[name] = vectors[:, at : at + prod(shape)].reshape(len(vectors), *shape)
            at += prod(shape)
        return self.projector.project(gradients)

    def __getitem__(self, index: int | slice | tuple[int | slice, int | slice]) -> Tensor:
        rows, columns = index if isinstance(index, tuple) else (index, slice(None))
        if not isinstance(rows, slice):
            rows = as_whole(rows, "a row")
            at = rows + self.shape[0] if rows < 0 else rows
            if not 0 <= at < self.shape[0]:
                raise IndexError(f"row {rows} of {self.shape[0]}")
            return self._rows(range(at, at + 1))[0][columns]
        return self._rows(range(*rows.indices(self.shape[0])))[:, columns]

    def norm(self) -> Tensor:
        """Frobenius norm, by computing every row once: sqrt(parameters) in expectation."""
        total = torch.zeros((), dtype=torch.float64)
        for start, stop in ranges(self.shape[0], _ROWS):
            total += self._rows(range(start, stop)).double().square().sum()
        return total.sqrt().float()

    def _rows(self, which: range) -> Tensor:
        parts = []
        for start, stop in ranges(len(which), _ROWS):
            units = torch.zeros(stop - start, self.shape[0], dtype=torch.float32)
            units[torch.arange(stop - start), torch.tensor(which[start:stop])] = 1
            parts.append(self.project(units))
        return torch.cat(parts) if parts else torch.zeros(0, self.shape[1], dtype=torch.float32)

"""No projection: the gradients themselves, one parameter after the other, in model order."""

from __future__ import annotations

from torch import Tensor

from trakstore.features.projectors.projector import Projector
from trakstore.spec import ParameterSpec, ProjectionSpec

__all__ = ["Identity"]


class Identity(Projector):
    """P = I; for small models and for tests of everything else."""

    def __init__(self, spec: ProjectionSpec, parameters: ParameterSpec) -> None:
        super().__init__(spec, parameters)
        self._total = 0
        self._offsets: dict[str, int] = {}
        for name, (rows, rest) in self.matrices.items():
            self._offsets[name] = self._total
            self._total += rows * rest

    @property
    def dim(self) -> int:
        """Number of features: as many as the parameters have scalars."""
        return self._total

    def add(self, out: Tensor, name: str, tile: Tensor, first_row: int = 0) -> None:
        """Add a tile at its place; see :meth:`Projector.add`."""
        batch, rows, rest = tile.shape
        start = self._offsets[name] + first_row * rest
        out[:, start : start + rows * rest] += tile.reshape(batch, rows * rest)

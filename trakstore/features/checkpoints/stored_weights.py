"""The contract of a checkpoint's weights: names and shapes first, tensors piece by piece."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import Tensor

from trakstore.features.sharding import Part

Shape = tuple[int, ...]
Parts = Mapping[str, Part]  # parts to read, by name; other tensors are read whole

WHOLE_TENSORS: Parts = MappingProxyType({})

# A piece ends at the end of a module, once it holds so many numbers: 16 MB in float32. A model of many
# gigabytes is loaded with a few megabytes beside it, and small modules are read many at a time.
_PIECE = 1 << 22


class StoredWeights(ABC):
    """Named tensors that lie somewhere, of which few are in memory at once.

    Attributes
    ----------
    where : str
        Where they lie, for messages.
    """

    where: str

    @abstractmethod
    def shapes(self) -> Mapping[str, Shape | None]:
        """Names and shapes, without reading tensors; None for values that are no tensors."""

    @abstractmethod
    def read(self, names: Sequence[str], parts: Parts = WHOLE_TENSORS) -> dict[str, Any]:
        """Read the tensors of these names into memory of the CPU, of some of them a part alone."""

    def pieces(
        self, names: Sequence[str], parts: Parts = WHOLE_TENSORS
    ) -> Iterator[dict[str, Any]]:
        """Read the tensors of these names or their parts, a few modules at a time."""
        for piece in by_modules(names, self.shapes()):
            yield self.read(piece, parts)


class WeightsInMemory(StoredWeights):
    """A state dict. Its values come in one piece, since several modules may share one of them."""

    def __init__(self, state: Mapping[str, Any], where: str) -> None:
        self.state, self.where = state, where

    def shapes(self) -> Mapping[str, Shape | None]:
        return {
            str(name): tuple(value.shape) if isinstance(value, Tensor) else None
            for name, value in self.state.items()
        }

    def read(self, names: Sequence[str], parts: Parts = WHOLE_TENSORS) -> dict[str, Any]:
        # A part is a view: the rest of a file that is mapped into memory is not read.
        return {
            name: self.state[name][parts[name]] if name in parts else self.state[name]
            for name in names
        }

    def pieces(
        self, names: Sequence[str], parts: Parts = WHOLE_TENSORS
    ) -> Iterator[dict[str, Any]]:
        yield self.read(names, parts)


def by_modules(names: Sequence[str], shapes: Mapping[str, Shape | None]) -> Iterator[list[str]]:
    """Cut names into runs that end where a module ends, once they hold some millions of numbers.

    Examples
    --------
    >>> list(by_modules(["a.weight", "a.bias", "b.weight"], {"a.weight": (4096, 4096)}))
    [['a.weight', 'a.bias'], ['b.weight']]
    """
    piece: list[str] = []
    numbers = 0
    for name in names:
        new_module = piece and piece[-1].rpartition(".")[0] != name.rpartition(".")[0]
        if new_module and numbers >= _PIECE:
            yield piece
            piece, numbers = [], 0
        piece.append(name)
        numbers += math.prod(shapes.get(name) or ())
    if piece:
        yield piece

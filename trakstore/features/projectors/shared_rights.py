"""Right factors that several parameters share, as weights of query, key and value share an input.

The matrix of each parameter reduces a factor with many columns to a few, so that most of the time goes
into reading the factor. Here it is read once, and multiplied with the matrices of all parameters side
by side.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from trakstore.features.projectors.pieces import Outer
from trakstore.features.projectors.products import Side, times

__all__ = ["SharedRights"]

_Place = tuple[int, torch.Size, tuple[int, ...]]


class SharedRights:
    """Right factors of one backward pass times sides, of which those for parameters yet to come wait.

    Parameters
    ----------
    sides_of : callable
        Gives the parameters that have a product's right factor, and their sides next to one another,
        which are of equal widths.
    """

    def __init__(self, sides_of: Callable[[Outer], tuple[tuple[str, ...], Side]]) -> None:
        self._sides_of = sides_of
        self._held: dict[tuple[str, _Place], tuple[Tensor, Tensor, float]] = {}

    def times(self, outer: Outer) -> tuple[Tensor, float]:
        """Multiply a right factor with its parameter's side: the product and its unit."""
        names, side = self._sides_of(outer)
        if len(names) == 1:
            return outer.right_times(0, outer.batch, side)
        # Layers name parameters with the same input; the memory address confirms that the factor is the
        # same. A factor is held until all of them have come, so that its memory is not reused
        # meanwhile.
        right = outer.make_right(0, outer.batch)
        place = right.data_ptr(), right.shape, right.stride()
        if (outer.name, place) not in self._held:
            products, unit = times(right, side)
            for name, product in zip(names, products.chunk(len(names), 2), strict=True):
                self._held[name, place] = right, product, unit
        _, product, unit = self._held.pop((outer.name, place))
        return product, unit

    def clear(self) -> None:
        """Drop products whose parameters have not come."""
        self._held.clear()

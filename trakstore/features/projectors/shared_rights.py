"""Right factors that several parameters have, as the weights of query, key and value have one input.

A matrix for each of them makes few columns of a factor with many, so that most of the time goes into
reading the factor. Here it is read once, and multiplied with the matrices of all of them side by side.
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
        # Names are what layers say of their inputs; that this is the same factor, memory says. A factor
        # is held until all have come, so that no other one lies there meanwhile, and no longer.
        right = outer.make_right(0, outer.batch)
        place = right.data_ptr(), right.shape, right.stride()
        if (outer.name, place) not in self._held:
            products, unit = times(right, side)
            for name, product in zip(names, products.chunk(len(names), 2), strict=True):
                self._held[name, place] = right, product, unit
        _, product, unit = self._held.pop((outer.name, place))
        return product, unit

    def clear(self) -> None:
        """Let go of products whose parameters have not come."""
        self._held.clear()

"""Marks that tensors carry through a forward pass: where in them the samples of the batch are."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from functools import cached_property
from math import prod
from typing import Literal, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "FREE",
    "LOST",
    "SUSPECT",
    "Axis",
    "Mark",
    "Placed",
    "Places",
    "Routed",
    "Rows",
    "Unplaced",
    "removed",
    "reshaped",
]


class Unplaced(Enum):
    """Marks of tensors that no samples can be cut from.

    ``FREE`` tensors hold no sample: weights, constants, positions. ``SUSPECT`` ones were made in Python
    after numbers of the data were read (``item``, ``tolist``): their values and even their shape may
    depend on the samples. ``LOST`` tensors hold samples, but where is not certain any more.
    """

    FREE = "free"
    SUSPECT = "suspect"
    LOST = "lost"


FREE, SUSPECT, LOST = Unplaced.FREE, Unplaced.SUSPECT, Unplaced.LOST


class Axis(NamedTuple):
    """A dimension along which the samples of a batch lie.

    Its size is ``before * batch * after``; entry ``i`` belongs to sample ``i // after % batch``. A
    plain batch dimension has ``before`` and ``after`` 1; samples that were merged with other
    dimensions, as by ``reshape(batch * time, width)``, have several entries each.
    """

    dim: int
    before: int = 1
    after: int = 1

    def front(self, tensor: Tensor, batch: int) -> Tensor | None:
        """Return the tensor as ``(batch, before * after, ...)``; None without such a dimension."""
        if self.dim >= tensor.ndim:
            return None
        if tensor.shape[self.dim] != self.before * batch * self.after:
            return None
        moved = tensor.movedim(self.dim, 0) if self.dim else tensor
        if self.before == 1:
            # In these two cases, which are nearly all, nothing is copied: the results are views.
            if self.after == 1:
                return moved.unsqueeze(1)
            return moved.reshape(batch, self.after, *moved.shape[1:])
        parts = moved.reshape(self.before, batch, self.after, *moved.shape[1:]).transpose(0, 1)
        return parts.reshape(batch, self.before * self.after, *moved.shape[1:])

    def sample_of(self, entries: Tensor, batch: int) -> Tensor:
        """Return the numbers of the samples to which entries along the axis belong."""
        return entries // self.after % batch


class Rows:
    """Rows that the data picked or sorted; two are equal only if they are one object.

    Parameters
    ----------
    samples : Tensor, int64, shape (rows,)
        Sample to which each row belongs.
    keys : Tensor, shape (rows,), optional
        Numbers by which they were sorted.
    picked : bool
        Whether their number depends on the data, so that some rows may be missing.
    """

    def __init__(
        self, samples: Tensor, keys: Tensor | None = None, *, picked: bool = False
    ) -> None:
        self.samples, self.keys, self.picked = samples, keys, picked

    @cached_property
    def _of_each(self) -> tuple[Tensor, Tensor]:
        """Rows in the order of their samples, and the position of each among its sample's rows."""
        order = torch.argsort(self.samples, stable=True)
        own = self.samples[order]
        first = torch.searchsorted(own, own, right=False)
        return order, torch.arange(len(own), device=own.device) - first

    def front(self, tensor: Tensor, batch: int) -> Tensor:
        """Return rows as ``(batch, each, ...)``, with zeros after those of samples that have fewer."""
        order, number = self._of_each
        each = int(number.max()) + 1 if len(number) else 1
        if len(order) == batch * each:  # every sample has equally many rows
            return tensor[order].view(batch, each, *tensor.shape[1:])
        out = tensor.new_zeros(batch, each, *tensor.shape[1:])
        out[self.samples[order], number] = tensor[order]
        return out


class Routed(NamedTuple):
    """A dimension with rows of the samples in an order that the data gave."""

    dim: int
    rows: Rows

    def front(self, tensor: Tensor, batch: int) -> Tensor | None:
        """Return the tensor as ``(batch, each, ...)``; None without such a dimension."""
        if self.dim >= tensor.ndim or tensor.shape[self.dim] != len(self.rows.samples):
            return None
        return self.rows.front(tensor.movedim(self.dim, 0) if self.dim else tensor, batch)


class Places(NamedTuple):
    """Row numbers in an index tensor: positions of routed rows along an axis of the samples.

    Attributes
    ----------
    rows : Rows
    source : Axis
        Axis along which the numbers count.
    what : str
        Whether they are an order of all rows (``"whole"``), one divided by the rows that share a token
        (``"divided"``), or the order that undoes it (``"back"``).
    """

    rows: Rows
    source: Axis
    what: Literal["whole", "divided", "back"]

    @property
    def whole(self) -> bool:
        """Tell whether it is an order of all rows."""
        return self.what == "whole"


Placed = Axis | Routed
Mark = Axis | Routed | Places | Unplaced


def removed(mark: Axis, dims: tuple[int, ...] | None) -> Mark:
    """Mark of a tensor without these dimensions: LOST if the samples' is one, or if none is known."""
    if dims is None or mark.dim in dims:
        return LOST
    return Axis(mark.dim - sum(dim < mark.dim for dim in dims), *mark[1:])


def reshaped(axis: Axis, old: Sequence[int], new: Sequence[int], batch: int) -> Mark:
    """Place of an axis after a reshape, which keeps the order of the elements.

    Parameters
    ----------
    axis : Axis
        Place of the samples in the old shape.
    old, new : sequence of int
        Shapes with equally many elements.
    batch : int
        Number of samples.

    Examples
    --------
    >>> reshaped(Axis(0), (3, 5, 8), (15, 8), 3), reshaped(Axis(1), (5, 3, 8), (15, 8), 3)
    (Axis(dim=0, before=1, after=5), Axis(dim=0, before=5, after=1))
    >>> reshaped(Axis(0), (4, 6), (2, 12), 4)
    <Unplaced.LOST: 'lost'>
    """
    dim = axis.dim
    if old[: dim + 1] == new[: dim + 1]:
        return axis
    # A reshape keeps the row-major order of the elements, which are `outer` runs of batch * inner. So a
    # new dimension holds the samples if its size is before * batch * after, with `outer` elements
    # before the batch and `inner` after it, as in the old shape.
    inner, outer = axis.after * prod(old[dim + 1 :]), prod(old[:dim]) * axis.before
    if not inner or not outer:
        return LOST
    for new_dim, size in enumerate(new):
        suffix = prod(new[new_dim + 1 :])
        after, rest = divmod(inner, suffix) if suffix else (0, 1)
        if rest or size % (batch * after):
            continue
        before = size // (batch * after)
        if before * prod(new[:new_dim]) == outer:
            return Axis(new_dim, before, after)
    return LOST

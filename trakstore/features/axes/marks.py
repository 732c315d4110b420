"""Marks that tensors carry through a forward pass: where in them the samples of the batch are."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from math import prod
from typing import NamedTuple

from torch import Tensor

__all__ = ["FREE", "LOST", "SUSPECT", "Axis", "Mark", "Unplaced", "relaid", "removed"]


class Unplaced(Enum):
    """Marks of tensors that no samples can be cut from.

    ``FREE`` tensors hold no sample: weights, constants, positions. ``SUSPECT`` ones are constants that
    Python made after it had read some of the data (``tolist``, ``item``), so that even their shape may
    be the data's. ``LOST`` tensors hold samples, but no longer certainly one a row and in order.
    """

    FREE = "free"
    SUSPECT = "suspect"
    LOST = "lost"


FREE, SUSPECT, LOST = Unplaced.FREE, Unplaced.SUSPECT, Unplaced.LOST


class Axis(NamedTuple):
    """A dimension along which the samples of a batch are.

    Its size is ``before * batch * after``; entry ``i`` is of sample ``i // after % batch``. A
    plain batch dimension has ``before`` and ``after`` 1; samples that were merged with other
    dimensions, as by ``reshape(batch * time, width)``, have several entries each.
    """

    dim: int
    before: int = 1
    after: int = 1

    def front(self, tensor: Tensor, batch: int) -> Tensor | None:
        """Return the tensor as ``(batch, before * after, ...)``; None where its size is another."""
        if self.dim >= tensor.ndim:
            return None
        if tensor.shape[self.dim] != self.before * batch * self.after:
            return None
        moved = tensor.movedim(self.dim, 0) if self.dim else tensor
        if self.before == 1:
            # Nothing is copied in these two cases, which are nearly all: they stay views.
            if self.after == 1:
                return moved.unsqueeze(1)
            return moved.reshape(batch, self.after, *moved.shape[1:])
        parts = moved.reshape(self.before, batch, self.after, *moved.shape[1:]).transpose(0, 1)
        return parts.reshape(batch, self.before * self.after, *moved.shape[1:])


Mark = Axis | Unplaced


def removed(mark: Axis, dims: tuple[int, ...] | None) -> Mark:
    """Mark of a tensor without these dimensions; the samples' must not be among them."""
    if dims is None or mark.dim in dims:
        return LOST
    return Axis(mark.dim - sum(dim < mark.dim for dim in dims), *mark[1:])


def relaid(axis: Axis, old: Sequence[int], new: Sequence[int], batch: int) -> Mark:
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
    >>> relaid(Axis(0), (3, 5, 8), (15, 8), 3), relaid(Axis(1), (5, 3, 8), (15, 8), 3)
    (Axis(dim=0, before=1, after=5), Axis(dim=0, before=5, after=1))
    >>> relaid(Axis(0), (4, 6), (2, 12), 4)
    <Unplaced.LOST: 'lost'>
    """
    dim = axis.dim
    if old[: dim + 1] == new[: dim + 1]:
        return axis
    # In memory the samples are `outer` runs of batch * inner elements. A reshape moves no element, so
    # a dimension of the new shape has the samples if it can be cut into before * batch * after with
    # the same number of elements outside and inside.
    inner, outer = axis.after * prod(old[dim + 1 :]), prod(old[:dim]) * axis.before
    if not inner or not outer:
        return LOST
    for place, size in enumerate(new):
        suffix = prod(new[place + 1 :])
        after, rest = divmod(inner, suffix) if suffix else (0, 1)
        if rest or size % (batch * after):
            continue
        before = size // (batch * after)
        if before * prod(new[:place]) == outer:
            return Axis(place, before, after)
    return LOST

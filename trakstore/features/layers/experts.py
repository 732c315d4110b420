"""Linear layers of experts, whose weights are one parameter: (experts, outputs, inputs), or turned.

An expert's weight is one row of the parameter, as projections see it. So its gradients are formed, a
few samples at a time; experts that none of these samples reaches are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from trakstore.features.layers.layer import Call, Layer, Matcher, Some, Use, WeightAndBias
from trakstore.features.projectors import Piece, Rows
from trakstore.planning import ranges

__all__ = ["MATCHERS", "expert"]

_TILE = 1 << 20  # gradient entries that are formed at once on the CPU, to fit a core's cache
_LARGE_TILE = 1 << 26


class Expert(WeightAndBias):
    """A product with the weight of one expert.

    Parameters
    ----------
    turned : bool
        Whether the weight is (inputs, outputs).
    """

    def __init__(self, x: Tensor, weight: Use | None, bias: Use | None, turned: bool) -> None:
        super().__init__(x, weight, bias)
        self._turned = turned

    def pieces(self, inputs: tuple[Tensor, ...], gradient: Tensor) -> Iterator[Piece | Some]:
        """See :meth:`Layer.pieces`."""
        gradient = gradient.flatten(1, -2)
        if self._bias:
            own = gradient.sum(1, keepdim=True, dtype=torch.float32)
            yield Rows(self._bias.name, own, self._bias.only_row or 0)
        if self._weight:
            x = inputs[0].flatten(1, -2)
            left, right = (x, gradient) if self._turned else (gradient, x)
            row = self._weight.only_row or 0
            for samples in _parts(left, right):
                # Rows of samples that have fewer than others are zeros.
                tile = left[samples].float().transpose(1, 2) @ right[samples].float()
                yield Some(samples, Rows(self._weight.name, tile.flatten(1)[:, None], row))


class Grouped(Layer):
    """Rows that lie in groups, each multiplied with the weight of its group's expert.

    Parameters
    ----------
    group : Tensor, shape (rows,)
        Expert of each row.
    turned : bool
        Whether the parameter is (experts, inputs, outputs).
    """

    def __init__(self, x: Tensor, weight: Use, group: Tensor, turned: bool) -> None:
        super().__init__((weight.name,), (x,))
        self.beside = (group,)
        self._weight, self._turned = weight, turned

    def pieces(self, inputs: tuple[Tensor, ...], gradient: Tensor) -> Iterator[Some]:
        """See :meth:`Layer.pieces`."""
        x, group = inputs
        x, group, gradient = x.flatten(1, -2), group.flatten(1), gradient.flatten(1, -2)
        left, right = (x, gradient) if self._turned else (gradient, x)
        experts = Members.of(group, self._weight.parameter.shape[0])
        for samples in _parts(left, right):
            for one, most in experts.reached(samples):
                tile = experts.product(one, most, left, right, samples)
                yield Some(samples, Rows(self._weight.name, tile.flatten(1)[:, None], one))


class Members(NamedTuple):
    """Rows of each group, within each sample.

    Attributes
    ----------
    order : Tensor, int64, shape (batch, rows)
        Rows of a sample sorted by group, counted over all samples.
    first, number : Tensor, int64, shape (batch, groups)
        First position of each group in the order, and its number of rows.
    """

    order: Tensor
    first: Tensor
    number: Tensor

    @classmethod
    def of(cls, group: Tensor, groups: int) -> Members:
        """Sort the groups of rows, ``(batch, rows)``; rows after the last group belong to none."""
        batch, group = len(group), group.to(torch.int64)
        count = group.new_zeros(batch, groups + 1).scatter_add_(1, group, torch.ones_like(group))
        first = count.cumsum(1) - count
        before = torch.arange(batch, device=group.device)[:, None] * group.shape[1]
        return cls(group.argsort(dim=1, stable=True) + before, first[:, :-1], count[:, :-1])

    def reached(self, samples: slice) -> list[tuple[int, int]]:
        """Return the groups with rows of any sample, and the most rows that a sample has in one."""
        most = self.number[samples].amax(0).tolist()
        return [(group, count) for group, count in enumerate(most) if count]

    def product(self, group: int, most: int, left: Tensor, right: Tensor, samples: slice) -> Tensor:
        """Return the sum of outer products of one group's rows, for some samples."""
        count, first = self.number[samples, group, None], self.first[samples, group, None]
        place = torch.arange(most, device=count.device)
        # Samples with fewer rows of this group than others have zeros for the rest.
        row = self.order[samples].gather(1, (first + place).clamp(max=self.order.shape[1] - 1))
        own = left.flatten(0, 1)[row].float() * (place < count)[:, :, None]
        return own.transpose(1, 2) @ right.flatten(0, 1)[row].float()


def _parts(left: Tensor, right: Tensor) -> Iterator[slice]:
    """Yield ranges of samples whose gradients by one expert are formed at once."""
    entries, most = left.shape[2] * right.shape[2], _LARGE_TILE if left.is_cuda else _TILE
    for start, stop in ranges(len(left), max(1, most // max(1, entries))):
        yield slice(start, stop)


def expert(call: Call, x: Tensor, w: Tensor, b: Tensor | None, turned: bool) -> Layer | None:
    """Match a product with the weight of one expert, a row of a parameter of three dimensions."""
    weight, bias = call.use(w), call.use(b)
    if bias and (bias.parameter.ndim != 2 or bias.only_row is None):
        return None
    if weight and weight.only_row is None:
        weight, turned = weight._replace(tensor=w.t()), not turned
        if weight.only_row is None:
            return None
    return Expert(x, weight, bias, turned) if weight or bias else None


def _grouped(call: Call) -> Layer | None:
    """Match ``grouped_mm(x, weight, offs=ends)`` with a whole parameter, as it is or turned round."""
    x, w, ends = (call.argument(i, n) for i, n in enumerate(("mat_a", "mat_b", "offs")))
    weight = call.use(w)
    if weight is None or ends is None or x.ndim != 2 or w.ndim != 3 or weight.parameter.ndim != 3:
        return None
    if call.argument(3, "bias") is not None:
        return None
    whole = weight.parameter
    turned = weight.whole
    if not turned:
        back = w.transpose(1, 2)
        same = back.shape == whole.shape and back.stride() == whole.stride()
        if not same or w.storage_offset() != whole.storage_offset():
            return None
    count = torch.arange(len(x), device=ends.device, dtype=ends.dtype)
    group = torch.searchsorted(ends.detach(), count, right=True)
    return Grouped(x, weight, group, turned)


_GROUPED = (getattr(F, "grouped_mm", None), getattr(torch, "_grouped_mm", None))
MATCHERS: dict[object, Matcher] = {one: _grouped for one in _GROUPED if one is not None}

"""Convolutions of 1, 2 and 3 dimensions: linear layers of unfolded inputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trakstore.features.layers.layer import Call, Layer, Matcher, Use, WeightAndBias, vector
from trakstore.features.projectors import Outer, Piece, Rows
from trakstore.features.projectors.pieces import Unfolded

__all__ = ["MATCHERS"]

_CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_GROUPS = 8  # more are done at once, with whole gradients: these weights are small
_PLACES = 128  # kept: a model's convolutions that differ, but not those of all sizes of inputs
_FEW = 64  # positions, up to which windows are rows in memory


@dataclass(frozen=True)
class Geometry:
    """Sizes of kernel and steps, one number a dimension."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def padded(self, x: Tensor) -> Tensor:
        """Put zeros around ``(n, channels, *sizes)``."""
        sides = list(chain(*zip(self.before[::-1], self.after[::-1], strict=True)))
        return F.pad(x, sides) if any(sides) else x

    def unfolded(self, x: Tensor) -> Tensor:
        """Return windows of ``(n, channels, *sizes)``, shape ``(n, positions, channels * kernel)``.

        They are contiguous where positions are few; otherwise each column is.
        """
        x = self.padded(x)
        (n, channels, *sizes), (by_sample, by_channel, *strides) = x.shape, x.stride()
        out = [
            (size - d * (k - 1) - 1) // s + 1
            for size, k, s, d in zip(sizes, self.kernel, self.stride, self.dilation, strict=True)
        ]
        steps = [one * s for one, s in zip(strides, self.stride, strict=True)]
        taps = [one * d for one, d in zip(strides, self.dilation, strict=True)]
        # A view has every window; the copy that follows is laid out as the products want it. With many
        # positions a row of memory is one tap at all of them: that is read and written in long runs.
        positions = prod(out)
        if positions <= _FEW:
            shape, by = (n, *out, channels, *self.kernel), (by_sample, *steps, by_channel, *taps)
            return x.as_strided(shape, by).reshape(n, positions, -1)
        shape, by = (n, channels, *self.kernel, *out), (by_sample, by_channel, *taps, *steps)
        return x.as_strided(shape, by).reshape(n, -1, positions).transpose(1, 2)

    def places(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return offsets of positions and of columns in padded samples ``(n, each, channels, *sizes)``.

        The entry of a window is at the sum of both; int32, one number a position and a column.
        """
        return _places(self, tuple(x.shape[1:]), x.stride()[1:], x.device)


@lru_cache(_PLACES)
def _places(
    geometry: Geometry, shape: tuple[int, ...], strides: tuple[int, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    (each, channels, *sizes), (by_each, by_channel, *steps) = shape, strides
    dims = zip(sizes, geometry.kernel, geometry.stride, geometry.dilation, steps, strict=True)
    positions, columns = [(each, by_each)], [(channels, by_channel)]
    for size, k, s, d, step in dims:
        positions.append(((size - d * (k - 1) - 1) // s + 1, s * step))
        columns.append((k, d * step))
    return _offsets(positions).to(device), _offsets(columns).to(device)


def _offsets(dims: list[tuple[int, int]]) -> Tensor:
    """Return the offsets of all entries of some dimensions, given as sizes and strides, in order."""
    total = torch.zeros(1, dtype=torch.int32)
    for size, step in dims:
        total = (total[:, None] + torch.arange(size, dtype=torch.int32) * step).flatten()
    return total


class Convolution(WeightAndBias):
    """A convolution; positions are those of the output."""

    samples_first = True

    def __init__(self, x: Tensor, weight: Use | None, bias: Use | None, shape: Geometry) -> None:
        super().__init__(x, weight, bias)
        self._shape = shape

    def pieces(self, inputs: tuple[Tensor, ...], gradient: Tensor) -> Iterator[Piece]:
        """See :meth:`Layer.pieces`."""
        left = gradient.flatten(3).permute(0, 1, 3, 2).flatten(1, 2)  # (batch, positions, rows)
        if self._bias:
            yield vector(self._bias.name, left)
        if self._weight:
            groups = self._shape.groups
            if groups > _GROUPS:
                yield self._at_once(self._weight.name, inputs[0], left)
                return
            # Each group is a convolution of its own, of some channels to some rows of the weight.
            lefts, rights = left.chunk(groups, 2), inputs[0].chunk(groups, 2)
            for i, (own, x) in enumerate(zip(lefts, rights, strict=True)):
                yield self._outer(self._weight.name, own, x, i * own.shape[2])

    def _outer(self, name: str, left: Tensor, x: Tensor, first_row: int) -> Outer:
        columns, right = x.shape[2] * prod(self._shape.kernel), partial(self._right, x)
        filtered, unfolded = partial(self._filtered, x), partial(self._unfolded, x)
        return Outer(name, left, right, left.shape[1], columns, first_row, filtered, unfolded)

    def _unfolded(self, x: Tensor, start: int, stop: int) -> Unfolded:
        """Return the padded input itself, and where its windows are."""
        own = x[start:stop]
        padded = self._shape.padded(own.flatten(0, 1)).unflatten(0, own.shape[:2])
        return Unfolded(padded, *self._shape.places(padded))

    def _right(self, x: Tensor, start: int, stop: int) -> Tensor:
        windows = self._shape.unfolded(x[start:stop].flatten(0, 1))
        return windows if x.shape[1] == 1 else windows.reshape(stop - start, -1, windows.shape[2])

    def _filtered(self, x: Tensor, start: int, stop: int, matrix: Tensor) -> Tensor:
        """Convolve with the columns of a matrix as filters: the windows are never formed."""
        shape = self._shape
        filters = matrix.T.reshape(matrix.shape[1], -1, *shape.kernel)
        convolve: Any = _CONVOLVE[len(shape.kernel)]
        padded = shape.padded(x[start:stop].flatten(0, 1).float())
        out = convolve(padded, filters, stride=shape.stride, dilation=shape.dilation)
        each = out.reshape(stop - start, -1, *out.shape[1:]).flatten(3)
        turned: Tensor = each.permute(0, 1, 3, 2).flatten(1, 2)
        return turned

    def _at_once(self, name: str, x: Tensor, left: Tensor) -> Rows:
        """Return the gradients of all groups, formed."""
        batch, groups = len(x), self._shape.groups
        right = self._right(x, 0, batch).float()
        right = right.reshape(*right.shape[:2], groups, -1)
        left = left.float().reshape(*left.shape[:2], groups, -1)
        tile = torch.einsum("btgr,btgc->bgrc", left, right)
        return Rows(name, tile.flatten(1, 2))


def _convolution(call: Call) -> Layer | None:
    x, w, b = (call.argument(i, n) for i, n in enumerate(("input", "weight", "bias")))
    weight, bias = call.use(w), call.use(b)
    if not any((weight, bias)) or any(use and not use.whole for use in (weight, bias)):
        return None
    return Convolution(x, weight, bias, _geometry(call, w)) if x.ndim == w.ndim else None


def _geometry(call: Call, weight: Tensor) -> Geometry:
    kernel = tuple(weight.shape[2:])
    each = partial(_each, dims=len(kernel))
    stride, dilation = each(call.argument(3, "stride", 1)), each(call.argument(5, "dilation", 1))
    padding = call.argument(4, "padding", 0)
    if padding == "same":
        # The odd one of the zeros is behind, as in torch.
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        before, after = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
    else:
        before = after = each(0 if padding == "valid" else padding)
    return Geometry(kernel, stride, before, after, dilation, call.argument(6, "groups", 1))


def _each(size: int | tuple[int, ...], dims: int) -> tuple[int, ...]:
    sizes = (size,) if isinstance(size, int) else tuple(size)
    return sizes * dims if len(sizes) == 1 else sizes


MATCHERS: dict[object, Matcher] = dict.fromkeys(_CONVOLVE.values(), _convolution)

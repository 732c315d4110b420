"""Convolutions of 1, 2 and 3 dimensions: linear layers of unfolded inputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trakstore.features.layers.layer import Call, Layer, Matcher, Use, vector
from trakstore.features.layers.unfolding import unfold
from trakstore.features.projectors import Outer, Piece, Rows

__all__ = ["MATCHERS"]

_CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_GROUPS = 8  # more are done at once, with whole gradients: these weights are small


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
        """``(n, channels, *sizes)`` with zeros around."""
        sides = list(chain(*zip(self.before[::-1], self.after[::-1], strict=True)))
        return F.pad(x, sides) if any(sides) else x

    def unfolded(self, x: Tensor) -> Tensor:
        """Windows of ``(n, channels, *sizes)``, shape ``(n, positions, channels * kernel)``."""
        return unfold(self.padded(x), self.kernel, self.stride, self.dilation)


class Convolution(Layer):
    """Positions are those of the output."""

    samples_first = True

    def __init__(self, x: Tensor, weight: Use | None, bias: Use | None, shape: Geometry) -> None:
        names = tuple(use.name for use in (weight, bias) if use)
        super().__init__(names, (x,) if weight else ())
        self._weight, self._bias, self._shape = weight, bias, shape

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
            lefts, rights = left.chunk(groups, 2), inputs[0].chunk(groups, 2)
            for i, (own, x) in enumerate(zip(lefts, rights, strict=True)):
                yield self._outer(self._weight.name, own, x, i * own.shape[2])

    def _outer(self, name: str, left: Tensor, x: Tensor, first_row: int) -> Outer:
        columns = x.shape[2]
        for size in self._shape.kernel:
            columns *= size
        return Outer(
            name,
            left,
            partial(self._right, x),
            left.shape[1],
            columns,
            first_row,
            partial(self._filtered, x),
        )

    def _right(self, x: Tensor, start: int, stop: int) -> Tensor:
        windows = self._shape.unfolded(x[start:stop].flatten(0, 1))
        return windows if x.shape[1] == 1 else windows.reshape(stop - start, -1, windows.shape[2])

    def _filtered(self, x: Tensor, start: int, stop: int, matrix: Tensor) -> Tensor:
        """Convolution with the columns of a matrix as filters."""
        shape = self._shape
        filters = matrix.T.reshape(matrix.shape[1], -1, *shape.kernel)
        convolve: Any = _CONVOLVE[len(shape.kernel)]
        padded = shape.padded(x[start:stop].flatten(0, 1).float())
        out = convolve(padded, filters, stride=shape.stride, dilation=shape.dilation)
        each = out.reshape(stop - start, -1, *out.shape[1:]).flatten(3)
        turned: Tensor = each.permute(0, 1, 3, 2).flatten(1, 2)
        return turned

    def _at_once(self, name: str, x: Tensor, left: Tensor) -> Rows:
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
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        before, after = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
    else:
        before = after = each(0 if padding == "valid" else padding)
    return Geometry(kernel, stride, before, after, dilation, call.argument(6, "groups", 1))


def _each(size: int | tuple[int, ...], dims: int) -> tuple[int, ...]:
    sizes = (size,) if isinstance(size, int) else tuple(size)
    return sizes * dims if len(sizes) == 1 else sizes


MATCHERS: dict[object, Matcher] = dict.fromkeys(_CONVOLVE.values(), _convolution)

"""Convolutions of 1, 2 and 3 dimensions: linear layers of unfolded inputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import chain
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trakstore.features.layers.layer import Call, Layer, Matcher, Use, WeightAndBias, vector
from trakstore.features.projectors import Outer, Piece, Rows, part
from trakstore.features.projectors.pieces import Unfolded

__all__ = ["MATCHERS"]

_CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_GROUPS = 8  # of more groups, whole gradients are formed at once: such weights are small
_PLACES = 128  # geometries that are kept: those of a model's convolutions, not of all input sizes
_BITS = 64  # bits of a number that says which entries of a window are zeros around the sample
_FEW = 64  # up to so many positions, windows are rows in memory


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

        Windows are contiguous if there are few positions; otherwise each column is.
        """
        x = self.padded(x)
        (n, channels, *sizes), (by_sample, by_channel, *strides) = x.shape, x.stride()
        out = [
            (size - d * (k - 1) - 1) // s + 1
            for size, k, s, d in zip(sizes, self.kernel, self.stride, self.dilation, strict=True)
        ]
        steps = [one * s for one, s in zip(strides, self.stride, strict=True)]
        taps = [one * d for one, d in zip(strides, self.dilation, strict=True)]
        # The view has every window; the copy below is laid out as the products want it. With many
        # positions, a row in memory is one tap at all positions, which is read and written in long
        # runs.
        positions = prod(out)
        if positions <= _FEW:
            shape, by = (n, *out, channels, *self.kernel), (by_sample, *steps, by_channel, *taps)
            return x.as_strided(shape, by).reshape(n, positions, -1)
        shape, by = (n, channels, *self.kernel, *out), (by_sample, by_channel, *taps, *steps)
        return x.as_strided(shape, by).reshape(n, -1, positions).transpose(1, 2)

    def places(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return where windows of samples ``(n, each, channels, *sizes)`` are; see :class:`Unfolded`.

        Zeros around the samples are not in memory if the kernel is so small that bits can say which
        entries of a position's window they are; otherwise the samples are padded.
        """
        return _places(self, tuple(x.shape[1:]), x.stride()[1:], x.device)

    @property
    def pads(self) -> bool:
        """Tell whether there are zeros around samples."""
        return any((*self.before, *self.after))

    @property
    def of_padded(self) -> Geometry:
        """Sizes and steps in a sample that is padded already."""
        none = (0,) * len(self.kernel)
        return replace(self, before=none, after=none)

    @property
    def taps(self) -> int:
        """Number of entries of a window in a channel."""
        return prod(self.kernel)


@lru_cache(_PLACES)
def _places(
    geometry: Geometry, shape: tuple[int, ...], strides: tuple[int, ...], device: torch.device
) -> tuple[Tensor, ...]:
    (each, channels, *sizes), (by_each, by_channel, *steps) = shape, strides
    # For each dimension: where windows begin, and the distances of their entries from there.
    starts, taps = list[Tensor](), list[Tensor]()
    for size, k, s, d, before, after in zip(
        sizes,
        geometry.kernel,
        geometry.stride,
        geometry.dilation,
        geometry.before,
        geometry.after,
        strict=True,
    ):
        count = (size + before + after - d * (k - 1) - 1) // s + 1
        starts.append(torch.arange(count) * s - before)
        taps.append(torch.arange(k) * d)
    by_start = [start * step for start, step in zip(starts, steps, strict=True)]
    by_tap = [tap * step for tap, step in zip(taps, steps, strict=True)]
    positions = _sums([torch.arange(each) * by_each, *by_start])
    columns = _sums([torch.arange(channels) * by_channel, *by_tap])
    tables = [positions.to(torch.int32), columns.to(torch.int32)]
    if geometry.pads:
        tables += _inside(each, channels, sizes, starts, taps)
    return tuple(table.to(device) for table in tables)


def _inside(
    each: int, channels: int, sizes: list[int], starts: list[Tensor], taps: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Return a bit for each column, and for each position the bits of columns inside the sample."""
    known = torch.ones(1, 1, dtype=torch.bool)
    for size, start, tap in zip(sizes, starts, taps, strict=True):
        at = start[:, None] + tap
        own = (at >= 0) & (at < size)
        known = (known[:, None, :, None] & own[None, :, None, :]).flatten(2).flatten(0, 1)
    count = known.shape[1]
    each_bit = torch.ones(count, dtype=torch.int64) << torch.arange(count)
    bits = (known * each_bit).sum(1)

    def narrow(words: Tensor) -> Tensor:
        # The highest bit is the sign, which the narrower type has too.
        few = count <= _BITS // 2
        return ((words + 2**31) % 2**32 - 2**31).to(torch.int32) if few else words

    return narrow(each_bit).repeat(channels), narrow(bits).repeat(each)


def _sums(dims: list[Tensor]) -> Tensor:
    """Return the sum of each choice of one number from each dimension, in order."""
    total = torch.zeros(1, dtype=torch.int64)
    for one in dims:
        total = (total[:, None] + one).flatten()
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
        """Return the input itself, and where its windows are."""
        shape, own = self._shape, part(x, start, stop)
        if shape.pads and shape.taps > _BITS:
            own = shape.padded(own.flatten(0, 1)).unflatten(0, own.shape[:2])
            shape = shape.of_padded
        return Unfolded(own, *shape.places(own))

    def _right(self, x: Tensor, start: int, stop: int) -> Tensor:
        windows = self._shape.unfolded(x[start:stop].flatten(0, 1))
        return windows if x.shape[1] == 1 else windows.reshape(stop - start, -1, windows.shape[2])

    def _filtered(self, x: Tensor, start: int, stop: int, matrix: Tensor) -> Tensor:
        """Convolve with the columns of a matrix as filters, without forming the windows."""
        shape = self._shape
        filters = matrix.T.reshape(matrix.shape[1], -1, *shape.kernel)
        convolve: Any = _CONVOLVE[len(shape.kernel)]
        own = part(x, start, stop).flatten(0, 1).float()
        alike, padding = shape.before == shape.after, (0,) * len(shape.kernel)
        # A GPU pads while it reads. On the CPU that would select other kernels, with other last bits.
        if alike and own.device.type != "cpu":
            padding = shape.before
        else:
            own = shape.padded(own)
        out = convolve(own, filters, None, shape.stride, padding, shape.dilation)
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
        # With an odd number of zeros, the extra one is at the end, as in torch.
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        before, after = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
    else:
        before = after = each(0 if padding == "valid" else padding)
    return Geometry(kernel, stride, before, after, dilation, call.argument(6, "groups", 1))


def _each(size: int | tuple[int, ...], dims: int) -> tuple[int, ...]:
    sizes = (size,) if isinstance(size, int) else tuple(size)
    return sizes * dims if len(sizes) == 1 else sizes


MATCHERS: dict[object, Matcher] = dict.fromkeys(_CONVOLVE.values(), _convolution)

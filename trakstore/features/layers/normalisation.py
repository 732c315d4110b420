"""Normalisations with a scale and a bias: layer, RMS, group and (in eval mode) batch norm."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from trakstore.features.layers.layer import Call, Layer, Matcher, Use, WeightAndBias, as_rows
from trakstore.features.layers.summed_positions import Statistics, position_sums
from trakstore.features.projectors import Piece
from trakstore.features.projectors.threads import shared
from trakstore.machine_code import compiled

__all__ = ["MATCHERS"]

_EACH = 0.7  # nanoseconds a value, estimated, by which threads share the work

Normalise = Callable[[Tensor], Tensor]
_Float = NDArray[np.float32]


class Normalisation(WeightAndBias):
    """A layer ``normalised(x)·weight + bias``, of the last dimensions or of the channels.

    Parameters
    ----------
    dims : int
        Number of the last dimensions that the parameters have; 0 if they are for channels, dimension 1.
    """

    def __init__(
        self, x: Tensor, weight: Use | None, bias: Use | None, normalise: Normalise, dims: int
    ) -> None:
        super().__init__(x, weight, bias)
        self._normalise, self._dims = normalise, dims
        self.samples_first = not dims

    def pieces(self, inputs: tuple[Tensor, ...], gradient: Tensor) -> Iterator[Piece]:
        """See :meth:`Layer.pieces`."""
        if self._weight:
            x = inputs[0]
            normal = self._normalise(x.flatten(0, 1)).reshape(x.shape)
            at_once = self._at_once(gradient, normal)
            if at_once:
                yield from at_once
                return
        if self._bias:
            yield self._summed(self._bias, gradient)
        if self._weight:
            yield self._summed(self._weight, gradient * normal)

    def _at_once(
        self, gradient: Tensor, x: Tensor, statistics: Statistics | None = None
    ) -> list[Piece]:
        """Return the gradients of scale and bias from one kernel; an empty list where there is none.

        ``x`` is normalised, or is given with statistics by which the kernel normalises it.
        """
        if self._dims > 1:
            return []
        alone, channels = self._bias is not None, not self._dims
        sums = position_sums(gradient, x, channels, alone, statistics)
        if sums is None:
            return []
        uses = (self._weight, self._bias)
        return [
            as_rows(use.name, use.parameter, one)
            for use, one in zip(uses, sums, strict=True)
            if use
        ]

    def _summed(self, use: Use, product: Tensor) -> Piece:
        # All dimensions that the parameter lacks are summed, except the samples'. Dimension 1 is a
        # sample's entries here, so that channels are dimension 2.
        keep = set(range(product.ndim - self._dims, product.ndim)) if self._dims else {2}
        others = [dim for dim in range(1, product.ndim) if dim not in keep]
        return as_rows(use.name, use.parameter, product.sum(others, dtype=torch.float32))


class BatchNorm(Normalisation):
    """A batch norm by running statistics; on a GPU its normalised input is not written to memory."""

    def __init__(
        self, x: Tensor, weight: Use | None, bias: Use | None, statistics: Statistics
    ) -> None:
        mean, variance, eps = statistics
        normalise: Normalise = lambda t: F.batch_norm(t, mean, variance, eps=eps)  # noqa: E731
        super().__init__(x, weight, bias, normalise, 0)
        self._statistics = statistics

    def pieces(self, inputs: tuple[Tensor, ...], gradient: Tensor) -> Iterator[Piece]:
        """See :meth:`Layer.pieces`."""
        at_once = self._weight and self._at_once(gradient, inputs[0], self._statistics)
        yield from at_once or super().pieces(inputs, gradient)


class LayerNorm(Normalisation):
    """A layer norm of the last dimension; on the CPU one pass gives both sums and keeps nothing."""

    def __init__(self, x: Tensor, weight: Use, bias: Use, normalise: Normalise, eps: float) -> None:
        super().__init__(x, weight, bias, normalise, 1)
        self._uses, self._eps = (weight, bias), eps

    def pieces(self, inputs: tuple[Tensor, ...], gradient: Tensor) -> Iterator[Piece]:
        """See :meth:`Layer.pieces`."""
        kinds = {(one.device.type, one.dtype) for one in (*inputs, gradient)}
        if kinds != {("cpu", torch.float32)}:
            yield from super().pieces(inputs, gradient)
            return
        sums = _layer_norm_sums(inputs[0].flatten(1, -2), gradient.flatten(1, -2), self._eps)
        for use, summed in zip(self._uses, sums, strict=True):
            yield as_rows(use.name, use.parameter, summed)


def _layer_norm_sums(x: Tensor, gradient: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Compute gradients of a layer norm's scale and bias, float32.

    Parameters
    ----------
    x, gradient : Tensor, shape (batch, positions, width), float32, on the CPU
        Input of the layer, and the gradient of its output.
    eps : float
        Added to the variance.

    Returns
    -------
    scale, bias : Tensor, shape (batch, width)
    """
    values, slopes = x.contiguous().numpy(), gradient.contiguous().numpy()
    scale, bias = (torch.zeros(len(x), x.shape[2], dtype=torch.float32) for _ in range(2))

    def work(start: int, stop: int) -> None:
        each = slice(start, stop)
        _add_layer_norm(values[each], slopes[each], eps, scale.numpy()[each], bias.numpy()[each])

    shared(len(x), x.numel() * _EACH, work)
    return scale, bias


@compiled
def _add_layer_norm(
    x: _Float, gradient: _Float, eps: float, scale: _Float, bias: _Float
) -> None:  # pragma: no cover
    # The forward pass does not keep mean and variance, so that they are computed again. The variance
    # takes a second pass over the row: E[x²] - mean² loses its digits if the mean is large.
    batch, positions, width = x.shape
    for b in range(batch):
        a, c = scale[b], bias[b]
        for t in range(positions):
            row, slope = x[b, t], gradient[b, t]
            total = np.float32(0)
            for j in range(width):
                total += row[j]
            mean = total / np.float32(width)
            total = np.float32(0)
            for j in range(width):
                total += (row[j] - mean) * (row[j] - mean)
            factor = np.float32(1 / np.sqrt(total / np.float32(width) + eps))
            for j in range(width):
                a[j] += slope[j] * (row[j] - mean) * factor
                c[j] += slope[j]


def _uses(call: Call, position: int) -> tuple[Use | None, Use | None] | None:
    """Return weight and bias, unless there is none or one is not a whole parameter."""
    weight, bias = call.argument(position, "weight"), call.argument(position + 1, "bias")
    uses = call.use(weight), call.use(bias)
    return uses if any(uses) and all(use is None or use.whole for use in uses) else None


def _layer_norm(call: Call) -> Layer | None:
    x, shape = call.argument(0, "input"), call.argument(1, "normalized_shape")
    uses, eps = _uses(call, 2), call.argument(4, "eps", 1e-5)
    if uses is None:
        return None
    weight, bias = uses
    normalise: Normalise = lambda t: F.layer_norm(t, shape, eps=eps)  # noqa: E731
    if weight and bias and len(shape) == 1:
        return LayerNorm(x, weight, bias, normalise, eps)
    return Normalisation(x, weight, bias, normalise, len(shape))


def _rms_norm(call: Call) -> Layer | None:
    x, shape = call.argument(0, "input"), call.argument(1, "normalized_shape")
    weight, eps = call.use(call.argument(2, "weight")), call.argument(3, "eps")
    if weight is None or not weight.whole:
        return None
    return Normalisation(x, weight, None, lambda t: F.rms_norm(t, shape, eps=eps), len(shape))


def _group_norm(call: Call) -> Layer | None:
    x, groups = call.argument(0, "input"), call.argument(1, "num_groups")
    uses, eps = _uses(call, 2), call.argument(4, "eps", 1e-5)
    if uses is None:
        return None
    return Normalisation(x, *uses, lambda t: F.group_norm(t, groups, eps=eps), 0)


def _batch_norm(call: Call) -> Layer | None:
    x, mean, variance = (
        call.argument(i, n) for i, n in enumerate(("input", "running_mean", "running_var"))
    )
    uses, eps = _uses(call, 3), call.argument(7, "eps", 1e-5)
    if uses is None or call.argument(5, "training", False) or mean is None:
        return None  # statistics of the batch depend on all of its samples
    return BatchNorm(x, *uses, Statistics(mean, variance, eps))


MATCHERS: dict[object, Matcher] = {
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    F.group_norm: _group_norm,
    F.batch_norm: _batch_norm,
}

"""Linear layers ``y = x·Wᵀ + b``, also with a transposed weight, as in GPT-2's ``Conv1D``.

Parts of a weight (attention's query, key and value) and transposed weights are recognised as views.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from trakstore.features.layers.experts import expert
from trakstore.features.layers.layer import Call, Layer, Matcher, Use, WeightAndBias, vector
from trakstore.features.projectors import Outer, Piece, part

__all__ = ["MATCHERS"]


class Linear(WeightAndBias):
    """A product with a weight; positions are all dimensions but the batch's and the last."""

    def __init__(self, x: Tensor, weight: Use | None, bias: Use | None, transposed: bool) -> None:
        super().__init__(x, weight, bias)
        self._transposed = transposed

    def pieces(self, inputs: tuple[Tensor, ...], gradient: Tensor) -> Iterator[Piece]:
        """See :meth:`Layer.pieces`."""
        if self._bias:
            yield vector(self._bias.name, gradient, self._bias.first_row or 0)
        if self._weight:
            # The weight's gradient is the sum over positions of outer products of the two.
            left, right = _positions(gradient), _positions(inputs[0])
            first_row, beside = self._weight.first_row or 0, self.same_input
            if self._transposed:  # rows of the weight are those of the input then, all of them
                left, right, first_row, beside = right, left, 0, ()
            _, positions, columns = right.shape
            name, make = self._weight.name, partial(part, right)
            yield Outer(name, left, make, positions, columns, first_row, beside=beside)


def _positions(tensor: Tensor) -> Tensor:
    """Return ``(batch, positions, width)``."""
    return tensor if tensor.ndim == 3 else tensor.flatten(1, -2)


def _linear(call: Call) -> Layer | None:
    x, weight, bias = (call.argument(i, n) for i, n in enumerate(("input", "weight", "bias")))
    return _matched(call, x, weight, bias, transposed=False)


def _addmm(call: Call) -> Layer | None:
    """Match ``bias + x @ weight``."""
    bias, x, weight = (call.argument(i, n) for i, n in enumerate(("input", "mat1", "mat2")))
    if set(call.kwargs) & {"beta", "alpha"}:
        return None
    return _matched(call, x, weight, bias, transposed=True)


def _matmul(call: Call) -> Layer | None:
    """Match ``x @ weight``."""
    x, weight = call.argument(0, "input"), call.argument(1, "other", call.kwargs.get("mat2"))
    return _matched(call, x, weight, None, transposed=True)


def _matched(call: Call, x: Tensor, w: Tensor, b: Tensor | None, transposed: bool) -> Layer | None:
    """Match a product with a weight, with some of its rows, or with a transposed view of it."""
    weight, bias = call.use(w), call.use(b)
    if any(use and use.tensor.ndim < use.parameter.ndim for use in (weight, bias)):
        return expert(call, x, w, b, transposed)
    if bias and bias.tensor.shape != w.shape[int(transposed) :][:1]:
        return None  # it is broadcast
    if weight and (w.ndim != 2 or weight.parameter.ndim != 2):
        return None
    if weight and not weight.whole:
        # The strides of a view show how it lies in the parameter.
        turned = w.stride(0) == 1 and w.stride(1) != 1
        if turned:
            weight, transposed = weight._replace(tensor=w.t()), not transposed
        rows_only = weight.first_row is not None
        if not rows_only or (transposed and weight.tensor.shape != weight.parameter.shape):
            return None
    if bias and bias.first_row is None:
        return None
    return Linear(x, weight, bias, transposed) if weight or bias else None


_PRODUCTS = (torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__)
MATCHERS: dict[object, Matcher] = {
    F.linear: _linear,
    torch.addmm: _addmm,
    **dict.fromkeys(_PRODUCTS, _matmul),
}

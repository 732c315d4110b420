"""Linear layers: ``y = x·Wᵀ + b``, and with the weight the other way round, as ``Conv1D`` of GPT-2.

Parts of a weight (attention's query, key and value) and transposed weights are seen as what they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from trakstore.features.layers.layer import Call, Layer, Matcher, Use, vector
from trakstore.features.projectors import Outer, Piece, part

__all__ = ["MATCHERS"]


class Linear(Layer):
    """Positions are all dimensions but the batch's and the last."""

    def __init__(self, x: Tensor, weight: Use | None, bias: Use | None, transposed: bool) -> None:
        names = tuple(use.name for use in (weight, bias) if use)
        super().__init__(names, (x,) if weight else ())
        self._weight, self._bias, self._transposed = weight, bias, transposed

    def pieces(self, inputs: tuple[Tensor, ...], gradient: Tensor) -> Iterator[Piece]:
        """See :meth:`Layer.pieces`."""
        if self._bias:
            yield vector(self._bias.name, gradient, self._bias.first_row or 0)
        if self._weight:
            left, right = _positions(gradient), _positions(inputs[0])
            if self._transposed:
                left, right = right, left
            first_row = 0 if self._transposed else self._weight.first_row or 0
            yield _outer(self._weight.name, left, right, first_row)


def _outer(name: str, left: Tensor, right: Tensor, first_row: int) -> Outer:
    _, positions, columns = right.shape
    return Outer(name, left, partial(part, right), positions, columns, first_row)


def _positions(tensor: Tensor) -> Tensor:
    return tensor if tensor.ndim == 3 else tensor.flatten(1, -2)


def _linear(call: Call) -> Layer | None:
    x, weight, bias = (call.argument(i, n) for i, n in enumerate(("input", "weight", "bias")))
    return _matched(call, x, weight, bias, transposed=False)


def _addmm(call: Call) -> Layer | None:
    """``bias + x @ weight``."""
    bias, x, weight = (call.argument(i, n) for i, n in enumerate(("input", "mat1", "mat2")))
    if set(call.kwargs) & {"beta", "alpha"}:
        return None
    return _matched(call, x, weight, bias, transposed=True)


def _matmul(call: Call) -> Layer | None:
    """``x @ weight``."""
    x, weight = call.argument(0, "input"), call.argument(1, "other")
    if weight is None:
        weight = call.argument(1, "mat2")
    return _matched(call, x, weight, None, transposed=True)


def _matched(call: Call, x: Tensor, w: Tensor, b: Tensor | None, transposed: bool) -> Layer | None:
    """A linear layer of the weight as it is, or as a view turned round."""
    weight, bias = call.use(w), call.use(b)
    if bias and bias.tensor.shape != w.shape[int(transposed) :][:1]:
        return None  # it is broadcast
    if weight and (w.ndim != 2 or weight.parameter.ndim != 2):
        return None
    if weight and not weight.whole:
        turned = w.stride(0) == 1 and w.stride(1) != 1
        if turned:
            weight, transposed = weight._replace(tensor=w.t()), not transposed
        rows_only = weight.first_row is not None
        if not rows_only or (transposed and weight.tensor.shape != weight.parameter.shape):
            return None
    if bias and bias.first_row is None:
        return None
    return Linear(x, weight, bias, transposed) if weight or bias else None


MATCHERS: dict[object, Matcher] = {
    F.linear: _linear,
    torch.addmm: _addmm,
    torch.matmul: _matmul,
    torch.mm: _matmul,
    Tensor.matmul: _matmul,
    Tensor.mm: _matmul,
    Tensor.__matmul__: _matmul,
}

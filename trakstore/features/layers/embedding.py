"""Embeddings: rows of a weight picked by integers."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from trakstore.features.layers.layer import Call, Layer, Matcher, Use
from trakstore.features.projectors import Gathered, Piece

__all__ = ["MATCHERS"]


class Embedding(Layer):
    """Rows of a weight: a sample's gradient is the output's gradients, each at the row it came from."""

    def __init__(self, index: Tensor, weight: Use, padding: int | None) -> None:
        super().__init__((weight.name,), (index,))
        self._name, self._rows, self._padding = weight.name, len(weight.parameter), padding

    def pieces(self, inputs: tuple[Tensor, ...], gradient: Tensor) -> Iterator[Piece]:
        """See :meth:`Layer.pieces`."""
        # An index in brackets may count from the end.
        index = inputs[0].reshape(len(gradient), -1).to(torch.int64) % self._rows
        values = gradient.reshape(*index.shape, -1)
        if self._padding is not None:  # that row is a constant
            values = values * (index != self._padding)[:, :, None]
        yield Gathered(self._name, index, values)


def _embedding(call: Call) -> Layer | None:
    index, weight = call.argument(0, "input"), call.use(call.argument(1, "weight"))
    padding = call.argument(2, "padding_idx")
    renormalised = call.argument(3, "max_norm") is not None
    by_frequency = call.argument(5, "scale_grad_by_freq", False)
    if weight is None or not weight.whole or renormalised or by_frequency:
        return None  # a forward that changes rows, or gradients that depend on the whole batch
    if padding is not None and padding < 0:
        padding += len(weight.tensor)
    return Embedding(index, weight, padding)


def _picked(call: Call) -> Layer | None:
    """Match ``weight[index]``: biases or whole weights of experts, by tokens; tables of biases."""
    weight, index = call.use(call.args[0]), call.args[1]
    if weight is None or not weight.whole or not isinstance(index, Tensor) or not index.ndim:
        return None
    integers = index.dtype in (torch.int64, torch.int32)
    return Embedding(index, weight, None) if integers else None


MATCHERS: dict[object, Matcher] = {F.embedding: _embedding, Tensor.__getitem__: _picked}

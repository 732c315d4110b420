"""Parameters that are added, multiplied with or expanded: position embeddings, class tokens, scales."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from trakstore.features.layers.layer import Call, Layer, Matcher, Use, as_rows
from trakstore.features.layers.summed_positions import position_sums
from trakstore.features.projectors import Piece

__all__ = ["MATCHERS"]


class Elementwise(Layer):
    """A parameter p in ``x + p`` or ``x * p`` with broadcasting, or expanded."""

    samples_first = True

    def __init__(self, use: Use, factor: Tensor | None = None) -> None:
        super().__init__((use.name,), () if factor is None else (factor,))
        self._use = use

    def pieces(self, inputs: tuple[Tensor, ...], gradient: Tensor) -> Iterator[Piece]:
        """See :meth:`Layer.pieces`."""
        if inputs and self._is_of_last(gradient):
            # A scale of the last dimension, as in many models' own norms.
            sums = position_sums(gradient, inputs[0], channels=False, alone=False)
            if sums is not None:
                yield as_rows(self._use.name, self._use.parameter, sums[0])
                return
        product = gradient if not inputs else gradient * inputs[0]
        own = self._unbroadcast(product.squeeze(1))
        yield as_rows(self._use.name, self._use.parameter, self._in_parameter(own))

    def _is_of_last(self, gradient: Tensor) -> bool:
        """Tell whether the parameter has a number for each place of the last dimension."""
        whole = self._use.whole and self._use.parameter.ndim == 1
        return whole and len(self._use.parameter) == gradient.shape[-1]

    def _unbroadcast(self, product: Tensor) -> Tensor:
        """Sum ``(batch, ...)`` to ``(batch, *shape of the view)``, float32."""
        shape, inner = self._use.tensor.shape, product.ndim - 1
        sizes = ([1] * inner + list(shape))[-inner:] if inner else []
        dims = [i + 1 for i, size in enumerate(sizes) if size == 1]
        # A GPU casts while it sums. On the CPU, summing a cast copy gives other last bits.
        if not dims or product.device.type == "cpu":
            product = product.to(torch.float32)
        summed = product.sum(dims, keepdim=True, dtype=torch.float32) if dims else product
        return summed.reshape(len(product), *shape)

    def _in_parameter(self, own: Tensor) -> Tensor:
        """Return gradients of the view as gradients of the parameter."""
        if self._use.whole:
            return own
        parameter, view = self._use.parameter, self._use.tensor
        # The view's gradient is written into a tensor of the parameter's size, at the view's own
        # strides, one sample after the other. Entries that the view does not show have no gradient.
        whole = own.new_zeros(len(own), parameter.numel())
        strides = (parameter.numel(), *view.stride())
        offset = view.storage_offset() - parameter.storage_offset()
        whole.as_strided(own.shape, strides, offset).copy_(own)
        return whole


def _add(call: Call) -> Layer | None:
    return None if call.kwargs.get("alpha", 1) != 1 else _with_parameter(call, multiply=False)


def _multiply(call: Call) -> Layer | None:
    return _with_parameter(call, multiply=True)


def _with_parameter(call: Call, multiply: bool) -> Layer | None:
    x, p = call.argument(0, "input"), call.argument(1, "other")
    if call.use(x):
        x, p = p, x
    use = call.use(p)
    if use is None or call.use(x) or not isinstance(x, Tensor) or _overlaps(use.tensor):
        return None
    dims = max(x.ndim, p.ndim)
    if use.tensor.ndim == dims > 0 and use.tensor.shape[0] != 1:
        return None  # the first dimension would be the batch's
    if multiply and x.ndim != dims:
        return None
    return Elementwise(use, x if multiply else None)


def _expand(call: Call) -> Layer | None:
    use = call.use(call.argument(0, "self"))
    return None if use is None or _overlaps(use.tensor) else Elementwise(use)


def _overlaps(tensor: Tensor) -> bool:
    """Tell whether entries may share memory, as those of an expanded view or of windows do.

    The gradients of such entries would have to be summed.
    """
    extent = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride < extent:
            return True
        extent += (size - 1) * stride
    return False


_ADDING = (torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__)
_MULTIPLYING = (torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__)
MATCHERS: dict[object, Matcher] = {
    **dict.fromkeys(_ADDING, _add),
    **dict.fromkeys(_MULTIPLYING, _multiply),
    Tensor.expand: _expand,
}

"""Products: linear layers, matrix products, convolutions, attention, embeddings."""

from __future__ import annotations

from torch import Tensor

from trakstore.features.axes.asked import Asked, Rule, aligned, alone
from trakstore.features.axes.marks import Axis, Mark, Unplaced

__all__ = ["RULES"]

FREE, LOST = Unplaced.FREE, Unplaced.LOST


def _linear(asked: Asked) -> Mark:
    """Mark of ``x·Wᵀ + b``; weights that hold samples are not a layer's."""
    mark = asked.of(asked.first)
    return LOST if isinstance(mark, Axis) and mark.dim == asked.first.ndim - 1 else mark


def _convolution(asked: Asked) -> Mark:
    """Mark of a convolution, whose samples are first."""
    mark = asked.of(asked.first)
    if asked.first.ndim != asked.argument(1, "weight").ndim:
        return LOST
    return LOST if isinstance(mark, Axis) and mark.dim else mark


def _embedding(asked: Asked) -> Mark:
    """Mark of rows looked up by an index, which get a last dimension more."""
    weight = asked.argument(1, "weight")
    return asked.of(asked.argument(0, "input")) if asked.of(weight) is FREE else LOST


def _matmul(asked: Asked) -> Mark:
    return _product(asked, asked.argument(0, "input"), _second(asked))


def _turned(asked: Asked) -> Mark:
    """Mark of ``other @ x``, as ``x.__rmatmul__(other)``."""
    return _product(asked, asked.args[1], asked.args[0])


def _second(asked: Asked) -> Tensor:
    second: Tensor = asked.argument(1, "other", asked.kwargs.get("mat2"))
    return second


def _product(asked: Asked, a: Tensor, b: Tensor) -> Mark:
    """Mark of a matrix product: the dimension that is summed must hold no samples."""
    shape = asked.result.shape
    own, other = asked.of(a), asked.of(b)
    if isinstance(own, Axis) and own.dim == a.ndim - 1:
        return LOST
    if isinstance(other, Axis) and other.dim == max(b.ndim - 2, 0):
        return LOST
    if a.ndim == 1 or b.ndim == 1:
        return _with_vector(a, b, own, other, shape)
    left = (own, (*a.shape[:-1], 1))
    right = (other, (*b.shape[:-2], 1, b.shape[-1]))
    return aligned([left, right], shape)


def _with_vector(a: Tensor, b: Tensor, own: Mark, other: Mark, shape: tuple[int, ...]) -> Mark:
    """Mark of a product in which one factor is a vector, which goes away."""
    if LOST in (own, other):
        return LOST
    if b.ndim == 1:
        return aligned([(own, a.shape[:-1])], shape) if other is FREE else LOST
    if own is not FREE or (isinstance(other, Axis) and other.dim == b.ndim - 1 and b.ndim > 2):
        return LOST
    if isinstance(other, Axis):
        return Axis(other.dim - (other.dim == b.ndim - 1), *other[1:])
    return other


def _addmm(asked: Asked) -> Mark:
    """Mark of ``bias + a @ b``."""
    bias = asked.argument(0, "input")
    a = asked.argument(1, "mat1", asked.kwargs.get("batch1"))
    b = asked.argument(2, "mat2", asked.kwargs.get("batch2"))
    shape = asked.result.shape
    product = _product(asked, a, b)
    return aligned([(asked.of(bias), bias.shape), (product, shape)], shape)


def _attention(asked: Asked) -> Mark:
    """Mark of attention over the last two dimensions, each row of keys and values with its queries."""
    tensors = [asked.argument(i, n) for i, n in enumerate(("query", "key", "value"))]
    operands = []
    for tensor in tensors:
        mark = asked.of(tensor)
        if isinstance(mark, Axis) and mark.dim >= tensor.ndim - 2:
            return LOST
        operands.append((mark, (*tensor.shape[:-2], 1, 1)))
    shape = (*asked.result.shape[:-2], 1, 1)
    mask = asked.argument(3, "attn_mask")
    if isinstance(mask, Tensor):
        own = asked.of(mask)
        if isinstance(own, Axis) and own.dim >= mask.ndim - 2:
            return LOST
        operands.append((own, (*mask.shape[:-2], 1, 1)))
    return aligned(operands, shape)


def _einsum(asked: Asked) -> Mark:
    """Mark of a sum over letters: samples must be under one letter, which the result has."""
    equation, *tensors = asked.args
    if len(tensors) == 1 and isinstance(tensors[0], tuple | list):
        tensors = list(tensors[0])
    if not isinstance(equation, str) or "->" not in equation or "." in equation:
        return LOST
    left, right = equation.replace(" ", "").split("->")
    found: set[tuple[str, int, int]] = set()
    lost: set[str] = set()
    for letters, tensor in zip(left.split(","), tensors, strict=True):
        mark = asked.of(tensor)
        if isinstance(mark, Axis):
            found.add((letters[mark.dim], *mark[1:]))
        elif mark is not FREE:
            lost |= set(letters)
    if not found:
        return LOST if lost else FREE
    letter, before, after = found.pop()
    if found or letter not in right or letter in lost:
        return LOST
    repeated = any(letters.count(letter) > 1 for letters in left.split(","))
    return LOST if repeated else Axis(right.index(letter), before, after)


RULES: dict[str, Rule] = {
    "linear": alone(_linear),
    **dict.fromkeys(("matmul", "mm", "bmm", "imatmul"), _matmul),
    "rmatmul": _turned,
    **dict.fromkeys(("addmm", "baddbmm"), _addmm),
    "einsum": _einsum,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), alone(_convolution)),
    **dict.fromkeys(
        ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), alone(_convolution)
    ),
    "embedding": _embedding,
    "scaled_dot_product_attention": _attention,
}

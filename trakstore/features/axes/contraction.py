"""Products: linear layers, matrix products, convolutions, attention, embeddings, recurrent layers."""

from __future__ import annotations

from torch import Tensor

from trakstore.features.axes.along import samples_first
from trakstore.features.axes.marked_call import MarkedCall, Rule, aligned, with_free_rest
from trakstore.features.axes.marks import FREE, LOST, Axis, Mark

__all__ = ["RULES"]


def _linear(call: MarkedCall) -> Mark:
    """Mark of ``x·Wᵀ + b``; weights that hold samples are not a layer's."""
    mark = call.mark(call.first)
    return LOST if isinstance(mark, Axis) and mark.dim == call.first.ndim - 1 else mark


def _convolution(call: MarkedCall) -> Mark:
    """Mark of a convolution, whose samples are first; without them it has a dimension less."""
    same = call.first.ndim == call.argument(1, "weight").ndim
    return samples_first(call) if same else LOST


def _embedding(call: MarkedCall) -> Mark:
    """Mark of rows looked up by an index, which get a last dimension more."""
    weight = call.argument(1, "weight")
    return call.mark(call.argument(0, "input")) if call.mark(weight) is FREE else LOST


def _matmul(call: MarkedCall) -> Mark:
    return _product(call, call.argument(0, "input"), _second(call))


def _turned(call: MarkedCall) -> Mark:
    """Mark of ``other @ x``, as ``x.__rmatmul__(other)``."""
    return _product(call, call.args[1], call.args[0])


def _second(call: MarkedCall) -> Tensor:
    second: Tensor = call.argument(1, "other", call.kwargs.get("mat2"))
    return second


def _product(call: MarkedCall, a: Tensor, b: Tensor) -> Mark:
    """Mark of a matrix product: the dimension that is summed must hold no samples."""
    shape = call.result.shape
    own, other = call.mark(a), call.mark(b)
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


def _addmm(call: MarkedCall) -> Mark:
    """Mark of ``bias + a @ b``."""
    bias = call.argument(0, "input")
    a = call.argument(1, "mat1", call.kwargs.get("batch1"))
    b = call.argument(2, "mat2", call.kwargs.get("batch2"))
    shape = call.result.shape
    product = _product(call, a, b)
    return aligned([(call.mark(bias), bias.shape), (product, shape)], shape)


def _attention(call: MarkedCall) -> Mark:
    """Mark of attention over the last two dimensions, each row of keys and values with its queries."""
    operands = []
    for position, name in enumerate(("query", "key", "value", "attn_mask")):
        tensor = call.argument(position, name)
        if not isinstance(tensor, Tensor):
            continue  # there need not be a mask
        mark = call.mark(tensor)
        if isinstance(mark, Axis) and mark.dim >= tensor.ndim - 2:
            return LOST
        operands.append((mark, (*tensor.shape[:-2], 1, 1)))
    return aligned(operands, (*call.result.shape[:-2], 1, 1))


def _einsum(call: MarkedCall) -> Mark:
    """Mark of a sum over letters: samples must be under one letter, which the result has."""
    equation, *tensors = call.args
    if len(tensors) == 1 and isinstance(tensors[0], tuple | list):
        tensors = list(tensors[0])
    if not isinstance(equation, str) or "->" not in equation or "." in equation:
        return LOST
    left, right = equation.replace(" ", "").split("->")
    places: set[tuple[str, int, int]] = set()
    lost: set[str] = set()
    for letters, tensor in zip(left.split(","), tensors, strict=True):
        mark = call.mark(tensor)
        if isinstance(mark, Axis):
            places.add((letters[mark.dim], *mark[1:]))
        elif mark is not FREE:
            lost |= set(letters)
    if not places:
        return LOST if lost else FREE
    letter, before, after = places.pop()
    if places or letter not in right or letter in lost:
        return LOST
    repeated = any(letters.count(letter) > 1 for letters in left.split(","))
    return LOST if repeated else Axis(right.index(letter), before, after)


def _sequences(call: MarkedCall) -> Mark | list[Mark]:
    """Marks of outputs and of last states; packed sequences, which have a dimension less, are lost."""
    first, states, weights, *_, batch_first = call.args
    if not isinstance(weights, tuple | list) or first.ndim != 3:
        return LOST
    place, begun = Axis(0 if batch_first else 1), _states(states)
    fits = call.mark(first) == place and all(call.mark(one) in (FREE, Axis(1)) for one in begun)
    if not fits or any(call.mark(weight) is not FREE for weight in weights):
        return LOST
    return [
        place,
        *[Axis(1)] * len(begun),
    ]  # states are (layers, batch, width), whatever the input is


def _cell(call: MarkedCall) -> Mark:
    """Mark of one step, of which all tensors have their samples first."""
    first, states, *weights = call.args
    if any(isinstance(w, Tensor) and call.mark(w) is not FREE for w in weights):
        return LOST
    rest = all(call.mark(one) in (FREE, Axis(0)) for one in _states(states))
    return Axis(0) if rest and call.mark(first) == Axis(0) else LOST


def _states(states: Tensor | list[Tensor]) -> list[Tensor]:
    """Return the states that a recurrent layer begins with: an LSTM has two, others one."""
    return [states] if isinstance(states, Tensor) else list(states)


RULES: dict[str, Rule] = {
    "linear": with_free_rest(_linear),
    **dict.fromkeys(("matmul", "mm", "bmm", "imatmul"), _matmul),
    "rmatmul": _turned,
    **dict.fromkeys(("addmm", "baddbmm"), _addmm),
    "einsum": _einsum,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), with_free_rest(_convolution)),
    **dict.fromkeys(
        ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), with_free_rest(_convolution)
    ),
    "embedding": _embedding,
    "scaled_dot_product_attention": _attention,
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _sequences),
    **dict.fromkeys(("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"), _cell),
}

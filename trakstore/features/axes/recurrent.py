"""Recurrent layers, whose results have their samples in different places."""

from __future__ import annotations

from torch import Tensor

from trakstore.features.axes.asked import Asked, Rule
from trakstore.features.axes.marks import Axis, Mark, Unplaced

__all__ = ["RULES"]

FREE, LOST = Unplaced.FREE, Unplaced.LOST


def _sequences(asked: Asked) -> Mark | list[Mark]:
    """Marks of outputs and of last states; packed sequences, which have a dimension less, are lost."""
    first, states, weights, *_, batch_first = asked.args
    if not isinstance(weights, tuple | list) or first.ndim != 3:
        return LOST
    place = Axis(0 if batch_first else 1)
    begun = [states] if isinstance(states, Tensor) else list(states)
    fits = asked.of(first) == place and all(asked.of(one) in (FREE, Axis(1)) for one in begun)
    if not fits or any(asked.of(weight) is not FREE for weight in weights):
        return LOST
    return [place, *[Axis(1)] * len(begun)]


def _cell(asked: Asked) -> Mark:
    """Mark of one step, of which all tensors have their samples first."""
    first, states, *weights = asked.args
    begun = [states] if isinstance(states, Tensor) else list(states)
    if any(isinstance(w, Tensor) and asked.of(w) is not FREE for w in weights):
        return LOST
    fits = asked.of(first) == Axis(0) and all(asked.of(one) in (FREE, Axis(0)) for one in begun)
    return Axis(0) if fits else LOST


RULES: dict[str, Rule] = {
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _sequences),
    **dict.fromkeys(("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"), _cell),
}

"""One number to be predicted: the prediction, with the squared error as its loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from trakstore.errors import TrakStoreError
from trakstore.features.outputs.calls import logits_of, need_keywords
from trakstore.features.outputs.model_output import (
    Model,
    ModelOutput,
    RowOutputs,
    label_key,
    need_tensor,
    widened,
)

__all__ = ["SquaredError"]


class SquaredError(ModelOutput):
    """output = the prediction f, loss = (f - y)²/2, ``out_to_loss`` = y - f.

    The model gives ``(batch,)`` or ``(batch, 1)``; batches are ``(input, ..., y)``, or dicts with
    ``labels`` (or ``label``).
    """

    name = "squared_error"
    calls_alone = True

    def __call__(self, model: Model, batch: Any) -> RowOutputs:
        """See :meth:`ModelOutput.__call__`."""
        inputs, wanted = _inputs_and_value(batch)
        found = widened(logits_of(model, inputs)).reshape(len(wanted), -1)[:, 0]
        miss = wanted.reshape(-1).to(found.dtype) - found
        return RowOutputs(found, miss**2 / 2, miss)

    def check(self, model: Model, batch: Any) -> int | None:
        """One prediction and one value for each sample."""
        inputs, wanted = _inputs_and_value(batch)
        need_keywords(model, inputs)
        found = need_tensor(logits_of(model, inputs), "a prediction")
        if found.numel() != len(wanted) or wanted.numel() != len(wanted):
            raise TrakStoreError(
                f"squared_error needs one prediction and one value for each of {len(wanted)} samples,"
                f" got {tuple(found.shape)} and {tuple(wanted.shape)}; for several, write an output "
                f"that picks or sums them"
            )
        return None


def _inputs_and_value(batch: Any) -> tuple[Any, Tensor]:
    name = label_key(batch)
    if name is not None:
        rest = {key: value for key, value in batch.items() if key != name}
        return rest, need_tensor(batch[name], name)
    if not isinstance(batch, tuple | list) or len(batch) < 2:
        got = f"one with {sorted(batch)}" if isinstance(batch, Mapping) else type(batch).__name__
        raise TrakStoreError(
            f"regression needs samples (input, ..., y), or dicts with 'labels' (or 'label'), got {got}"
        )
    return tuple(batch[:-1]), need_tensor(batch[-1], "the last entry of a batch")

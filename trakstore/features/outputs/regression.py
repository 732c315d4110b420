"""One number to be predicted: the prediction, with the squared error as its loss."""

from __future__ import annotations

from typing import Any

from trakstore.errors import TrakStoreError
from trakstore.features.outputs.model_output import (
    Model,
    ModelOutput,
    RowOutputs,
    inputs_and_target,
    logits_of,
    need_keywords,
    need_tensor,
    widened,
)

__all__ = ["SquaredError"]


class SquaredError(ModelOutput):
    """The prediction f as the output: loss = (f - y)²/2, ``out_to_loss`` = y - f.

    The model gives ``(batch,)`` or ``(batch, 1)``; batches are ``(input, ..., y)``, or dicts with
    ``labels`` (or ``label``).

    Examples
    --------
    >>> rows = SquaredError()(nn.Linear(4, 1), (torch.eye(4), torch.ones(4)))
    >>> torch.allclose(rows.out_to_loss, 1 - rows.output)
    True
    """

    name = "squared_error"
    calls_alone = True
    columns = frozenset({"label", "labels"})

    def __call__(self, model: Model, batch: Any) -> RowOutputs:
        """See :meth:`ModelOutput.__call__`."""
        inputs, wanted = inputs_and_target(batch, "regression", "y")
        predicted = widened(logits_of(model, inputs)).reshape(len(wanted), -1)[:, 0]
        # -d((f - y)²/2)/df is y - f.
        miss = wanted.reshape(-1).to(predicted.dtype) - predicted
        return RowOutputs(predicted, miss**2 / 2, miss)

    def check(self, model: Model, batch: Any) -> int | None:
        """Check that the model gives one prediction a sample, and the batch one value.

        Raises
        ------
        TrakStoreError
            When there are more, or fewer.
        """
        inputs, wanted = inputs_and_target(batch, "regression", "y")
        need_keywords(model, inputs)
        predicted = need_tensor(logits_of(model, inputs), "a prediction")
        if predicted.numel() != len(wanted) or wanted.numel() != len(wanted):
            raise TrakStoreError(
                f"squared_error needs one prediction and one value for each of {len(wanted)} samples, "
                f"got {tuple(predicted.shape)} and {tuple(wanted.shape)}; for several, write an "
                f"output that picks or sums them"
            )
        return None

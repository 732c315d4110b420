"""Samples that count with weights of their own: importance weights, advantages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from trakstore.errors import TrakStoreError
from trakstore.features.outputs.model_output import Model, ModelOutput, RowOutputs, need_tensor
from trakstore.features.outputs.tokens import OfTokens, SeparatesTokens, need_tokens
from trakstore.spec import OutputSpec


class Weighted(ModelOutput, SeparatesTokens):
    """Another output, of which each sample's loss is multiplied by a number that the data carry.

    loss = w·l and ``out_to_loss`` = w·(the other's); the output, whose gradient is stored, is the
    other's. ``Weighted(CausalLM(over="loss"), "advantages")`` is the loss of policy gradients at the
    weights that drew the samples, as in GRPO: an advantage times minus the mean log-probability.

    Parameters
    ----------
    output : ModelOutput
        The output without weights.
    key : str
        Name of the weights in dict batches, shape (batch,); of any sign.

    Raises
    ------
    TrakStoreError
        When ``output`` is no :class:`ModelOutput`.

    Examples
    --------
    >>> from trakstore.features import CausalLM
    >>> Weighted(CausalLM(over="loss"), "advantages").spec.name
    'weighted'
    """

    name = "weighted"

    def __init__(self, output: ModelOutput, key: str = "weights") -> None:
        if not isinstance(output, ModelOutput):
            raise TrakStoreError(
                f"Weighted takes a ModelOutput, such as CausalLM(), got {type(output).__name__}"
            )
        self.output, self.key = output, key
        self.calls_alone = output.calls_alone
        self.columns = None if output.columns is None else output.columns | {key}

    @property
    def spec(self) -> OutputSpec:
        """Name and options of the other output, and the key."""
        inner = self.output.spec
        options = {f"output_{name}": value for name, value in inner.options} | {"key": self.key}
        # Methods on loss gradients look for this, and refuse a loss that is no function of the output.
        options |= {name: value for name, value in inner.options if name == "loss_of_output"}
        return OutputSpec(self.name, tuple(sorted((options | {"output": inner.name}).items())))

    def __call__(self, model: Model, batch: Any) -> RowOutputs:
        """See :meth:`ModelOutput.__call__`."""
        weights, rest = self._apart(batch)
        output, loss, misses = self.output(model, rest)
        weights = weights.reshape(-1).to(loss.dtype)
        return RowOutputs(output, weights * loss, weights * misses)

    def tokens(self, model: Model, batch: Any) -> Tensor:
        """Number the tokens of a batch that count, for the model, as the other output does.

        Raises
        ------
        TrakStoreError
            When that is not made of tokens.
        """
        return need_tokens(self.output).tokens(model, self._apart(batch)[1])

    def labels(self, batch: Any) -> Tensor | None:
        """Return the other output's classes of a batch."""
        return self.output.labels(self._apart(batch)[1])

    def predictions(self, model: Model, batch: Any) -> Tensor | None:
        """Return the classes that the model says of a batch, by the other output."""
        return self.output.predictions(model, self._apart(batch)[1])

    def check(self, model: Model, batch: Any) -> int | None:
        """Check that a batch has one weight a sample, and that the other output takes the model.

        Raises
        ------
        TrakStoreError
            When there is no weight, or not one number a sample.
        """
        weights, rest = self._apart(batch)
        if weights.numel() != len(weights):
            raise TrakStoreError(
                f"{self.key!r} must be one number a sample, got shape {tuple(weights.shape)}"
            )
        return self.output.check(model, rest)

    def _apart(self, batch: Any) -> tuple[Tensor, Any]:
        if isinstance(batch, OfTokens):
            weights, rest = self._apart(batch.batch)
            return weights, OfTokens(batch.own, rest)
        if not isinstance(batch, Mapping) or self.key not in batch:
            got = sorted(batch) if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
            raise TrakStoreError(f"weighted outputs need dicts with {self.key!r}, got {got}")
        rest = {name: value for name, value in batch.items() if name != self.key}
        return need_tensor(batch[self.key], self.key), rest

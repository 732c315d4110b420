"""Tokens to be predicted: causal and masked language models, a sequence at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from trakstore.errors import TrakStoreError
from trakstore.features.outputs.base import (
    Model,
    ModelOutput,
    RowOutputs,
    log_odds,
    logits_of,
    need_tensor,
)
from trakstore.spec import OutputSpec

__all__ = ["CausalLM", "MaskedLM"]

IGNORED = -100  # a label that stands for no token, as in torch and transformers

Over = Literal["sequence", "tokens", "loss"]


@dataclass(frozen=True)
class _Tokens(ModelOutput):
    """Predicted tokens of a sequence.

    Batches are dicts with ``input_ids`` and, where there is padding, ``attention_mask``, beside
    whatever else the model takes; or tuples whose first entry is the ids. Labels are ``labels``;
    those of -100, and of masked positions, do not count.

    Attributes
    ----------
    over : {"sequence", "tokens", "loss"}
        ``"sequence"``: the log-odds of p = exp(-loss), with the mean (or sum) of the token's cross
        entropies as loss: one scalar of which the loss is a function. ``"tokens"``: the mean (or sum)
        of the tokens' own margins, as for one label; its loss is no function of it, so that methods
        on loss gradients refuse such a store. ``"loss"``: the loss itself.
    reduction : {"mean", "sum"}
        Over the tokens of a sequence.
    """

    over: Over = "sequence"
    reduction: Literal["mean", "sum"] = "mean"

    def __post_init__(self) -> None:
        if self.over not in get_args(Over) or self.reduction not in ("mean", "sum"):
            raise TrakStoreError(
                f"over must be 'sequence', 'tokens' or 'loss', reduction 'mean' or 'sum', got "
                f"{self.over!r} and {self.reduction!r}"
            )

    @property
    def spec(self) -> OutputSpec:
        """Its name, what it is over, and the reduction."""
        options: dict[str, Any] = {"over": self.over, "reduction": self.reduction}
        if self.over == "tokens":
            options["loss_of_output"] = False
        return OutputSpec(self.name, tuple(sorted(options.items())))

    def __call__(self, model: Model, batch: Any) -> RowOutputs:
        """See :meth:`ModelOutput.__call__`."""
        logits, wanted = self._aligned(logits_of(model, _inputs(batch)).float(), _labels(batch))
        counted = wanted != IGNORED
        tokens = wanted.clamp(min=0)[..., None]
        own = logits.gather(-1, tokens)[..., 0]
        losses = logits.logsumexp(-1) - own
        loss = self._reduced(losses, counted)
        if self.over == "loss":
            return RowOutputs(loss, loss, -torch.ones_like(loss))
        if self.over == "sequence":
            return log_odds(loss)
        others = logits.scatter(-1, tokens, -torch.inf).logsumexp(-1)
        misses = self._reduced(torch.sigmoid(others - own), counted)
        return RowOutputs(self._reduced(own - others, counted), loss, misses)

    def check(self, model: Model, batch: Any) -> int | None:
        """Logits must be ``(batch, length, vocabulary)``, labels ``(batch, length)``."""
        wanted = _labels(batch)
        with torch.no_grad():
            logits = need_tensor(logits_of(model, _inputs(batch)), "the model's logits")
        if logits.ndim != 3 or wanted.shape != logits.shape[:2] or wanted.is_floating_point():
            raise TrakStoreError(
                f"{self.name} needs logits (batch, length, vocabulary) and integer labels (batch, "
                f"length), got {tuple(logits.shape)} and {tuple(wanted.shape)} of {wanted.dtype}"
            )
        counted = (self._aligned(logits, wanted)[1] != IGNORED).sum(1)
        if not counted.all():
            raise TrakStoreError(
                f"{self.name}: sample {int((counted == 0).nonzero()[0])} has no token that counts"
            )
        return None

    def _aligned(self, logits: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Logits beside the tokens that they predict."""
        return logits, wanted

    def _reduced(self, values: Tensor, counted: Tensor) -> Tensor:
        total = values.masked_fill(~counted, 0).sum(1)
        return total / counted.sum(1) if self.reduction == "mean" else total


class CausalLM(_Tokens):
    """Each token from those before it; ``labels`` are the ``input_ids`` where they are not given."""

    name = "causal_lm"

    def _aligned(self, logits: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        return logits[:, :-1], wanted[:, 1:]


class MaskedLM(_Tokens):
    """The tokens that have labels, from all others (or one class for each token, as in tagging)."""

    name = "masked_lm"

    def check(self, model: Model, batch: Any) -> int | None:
        """Labels must be given: which tokens are to be predicted cannot be known otherwise."""
        if not isinstance(batch, Mapping) or "labels" not in batch:
            raise TrakStoreError("masked_lm needs dicts with 'labels', -100 where nothing is asked")
        return super().check(model, batch)


def _inputs(batch: Any) -> Any:
    """What the model takes: everything but the labels."""
    if isinstance(batch, Mapping):
        return {name: value for name, value in batch.items() if name != "labels"}
    return batch[:1] if isinstance(batch, tuple | list) else (batch,)


def _labels(batch: Any) -> Tensor:
    """The tokens to be predicted, -100 where the padding is."""
    if isinstance(batch, Tensor):
        return batch
    if not isinstance(batch, Mapping):
        return need_tensor(batch[min(1, len(batch) - 1)], "labels")
    if "labels" not in batch and "input_ids" not in batch:
        raise TrakStoreError(f"a batch needs 'labels' or 'input_ids', got {sorted(batch)}")
    labels = need_tensor(batch.get("labels", batch.get("input_ids")), "labels")
    mask = batch.get("attention_mask")
    if mask is None or mask.shape != labels.shape:
        return labels
    return labels.masked_fill(mask == 0, IGNORED)

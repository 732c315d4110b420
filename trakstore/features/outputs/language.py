"""Tokens to be predicted: causal and masked language models, a sequence at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from trakstore.errors import TrakStoreError
from trakstore.features.outputs.model_output import Model, ModelOutput, RowOutputs, need_keywords
from trakstore.features.outputs.odds import log_losses, log_odds, outside, rounded, shortfall
from trakstore.features.outputs.predicted_classes import PredictsClasses
from trakstore.features.outputs.sequences import IGNORED, Sequences, sequences
from trakstore.features.outputs.tokens import OfTokens, SeparatesTokens
from trakstore.spec import OutputSpec

__all__ = ["CausalLM", "MaskedLM"]

Over = Literal["sequence", "tokens", "loss"]

_CLASSIFIER = "; one label a sample is asked by output='margin'"


@dataclass(frozen=True)
class _Tokens(ModelOutput, PredictsClasses, SeparatesTokens):
    """Predicted tokens of a sequence.

    Batches are dicts with ``input_ids`` and, where there is padding, ``attention_mask``, beside
    whatever else the model takes; or tuples of ids, and labels if they are others. Labels are
    ``labels``; those of -100, and of masked positions, do not count. An encoder-decoder model's are
    the target's tokens: its decoder's inputs are made of them by the model itself, where they are not
    given, and ``decoder_attention_mask`` is what masks them.

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

    columns = frozenset({"labels"})
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
        """Name, tokens or sequence, and the reduction."""
        options: dict[str, Any] = {"over": self.over, "reduction": self.reduction}
        if self.over == "tokens":
            options["loss_of_output"] = False
        return OutputSpec(self.name, tuple(sorted(options.items())))

    @property
    def averaged(self) -> bool:
        """See :attr:`PredictsClasses.averaged`."""
        return self.reduction == "mean"

    def __call__(self, model: Model, batch: Any) -> RowOutputs:
        """See :meth:`ModelOutput.__call__`; NaN for a sequence without a token that counts.

        Of a batch of :class:`OfTokens`, the output and ``out_to_loss`` are the sequence's, the
        gradient and the loss the tokens' parts of them.
        """
        own, batch = batch if isinstance(batch, OfTokens) else (None, batch)
        parts = sequences(model, batch, self.name)
        logits, wanted = self._aligned(parts.logits(model), parts)
        counted = wanted != IGNORED
        strange = counted & outside(wanted, logits.shape[-1])
        undefined = ~counted.any(1) | strange.any(1)
        # Rows that have no output compute one of all tokens, and are filled afterwards: what is filled
        # has no gradient, while a NaN on the way would make the gradients NaN.
        counted |= undefined[:, None]
        x = shortfall(logits, wanted.clamp(0, logits.shape[-1] - 1))
        if own is None:
            rows = self._rows(x, counted)
        else:
            rows = self._rows(torch.where(own, x, x.detach()), counted)
            rows = rows._replace(loss=self._reduced(F.softplus(x).masked_fill(~own, 0), counted))
        filled = RowOutputs(*(one.masked_fill(undefined, torch.nan) for one in rows))
        return rounded(filled, logits.dtype)

    def _rows(self, x: Tensor, counted: Tensor) -> RowOutputs:
        """Compute outputs from log((1 - p)/p) = x of each token and whether it is counted."""
        if self.over == "sequence":
            # The logarithm of a sum of losses, or of their mean, without the losses themselves: those
            # that are tiny would be lost beside 1.
            logs = log_losses(x).masked_fill(~counted, -torch.inf).logsumexp(1)
            return log_odds(logs - counted.sum(1).log() if self.reduction == "mean" else logs)
        loss = self._reduced(F.softplus(x), counted)
        if self.over == "loss":
            return RowOutputs(loss, loss, -torch.ones_like(loss))
        misses = self._reduced(torch.sigmoid(x), counted)
        return RowOutputs(self._reduced(-x, counted), loss, misses)

    def check(self, model: Model, batch: Any) -> int | None:
        """Raise unless logits are ``(batch, length, vocabulary)`` and labels ``(batch, length)``."""
        parts = sequences(model, batch, self.name)
        need_keywords(model, parts.keywords)
        logits, wanted = parts.logits(model), parts.labels
        bad = wanted.is_floating_point() or wanted.dtype == torch.bool
        if logits.ndim != 3 or wanted.shape != logits.shape[:2] or bad:
            raise TrakStoreError(
                f"{self.name} needs logits (batch, length, vocabulary) and integer labels (batch, "
                f"length), got {tuple(logits.shape)} and {tuple(wanted.shape)} of {wanted.dtype}"
                f"{_CLASSIFIER if logits.ndim == 2 else ''}"
            )
        strange = (wanted != IGNORED) & outside(wanted, logits.shape[2])
        if strange.any():
            raise TrakStoreError(
                f"{self.name}: labels hold {int(wanted[strange][0])}; tokens are from 0 to "
                f"{logits.shape[2] - 1}, and {IGNORED} stands where nothing is asked"
            )
        return None

    def tokens(self, model: Model, batch: Any) -> Tensor:
        """See :meth:`SeparatesTokens.tokens`."""
        parts = sequences(model, batch, self.name)
        numbers = self._beside_logits(parts.numbers, parts)
        return numbers.masked_fill(self._wanted(parts) == IGNORED, -1)

    def counted(self, model: Model, batch: Any) -> Tensor:
        """See :meth:`PredictsClasses.counted`: tokens that have a label."""
        return self._wanted(sequences(model, batch, self.name)) != IGNORED

    def predicted(self, model: Model, batch: Any) -> Tensor:
        """See :meth:`PredictsClasses.predicted`."""
        parts = sequences(model, batch, self.name)
        return self._aligned(parts.logits(model), parts)[0]

    def relabelled(self, model: Model, batch: Any, labels: Tensor) -> Any:
        """See :meth:`PredictsClasses.relabelled`: what the model reads stays as it is."""
        parts = sequences(model, batch, self.name)
        whole, counted = parts.labels.clone(), self._wanted(parts) != IGNORED
        own = self._beside_logits(whole, parts)
        own.copy_(torch.where(counted, labels.to(own.dtype), own))
        return parts.relabelled(batch, whole)

    def _aligned(self, logits: Tensor, parts: Sequences) -> tuple[Tensor, Tensor]:
        """Return logits beside the tokens that they predict."""
        return logits, self._wanted(parts)

    def _wanted(self, parts: Sequences) -> Tensor:
        """Return the labels that logits stand beside, -100 where nothing is asked."""
        return self._beside_logits(parts.labels, parts)

    def _beside_logits(self, labels: Tensor, parts: Sequences) -> Tensor:  # noqa: ARG002
        """Return the labels of all positions as those of the logits, a view."""
        return labels

    def _reduced(self, values: Tensor, counted: Tensor) -> Tensor:
        total = values.masked_fill(~counted, 0).sum(1)
        return total / counted.sum(1) if self.reduction == "mean" else total


class CausalLM(_Tokens):
    """Each token from those before it; ``labels`` are the ``input_ids`` where they are not given.

    Labels are moved by one here, so they are not moved before; but those of an encoder-decoder model
    stand beside its logits, and are taken as they are. The first token behind padding at the left, and
    the first of each document of a pack (where ``position_ids`` begin again, or ``seq_idx`` changes),
    are predicted by nothing, and do not count.

    Examples
    --------
    >>> network = nn.Sequential(nn.Embedding(16, 16))
    >>> tokens = torch.tensor([[3, 1, 4], [1, 5, 9]])
    >>> rows = CausalLM()(network, {"input": tokens, "labels": tokens})
    >>> rows.output.shape
    torch.Size([2])
    """

    name = "causal_lm"

    def check(self, model: Model, batch: Any) -> int | None:
        """Check the model's logits, and that the labels of a batch have not been moved already.

        Raises
        ------
        TrakStoreError
            When they have, or logits and labels do not fit together.
        """
        parts = sequences(model, batch, self.name)
        if not parts.target and _moved(parts.ids, parts.labels):
            raise TrakStoreError(
                "causal_lm: labels are the input_ids moved by one, and would be moved again: give the "
                "input_ids themselves as labels, -100 where nothing is asked"
            )
        return super().check(model, batch)

    def _aligned(self, logits: Tensor, parts: Sequences) -> tuple[Tensor, Tensor]:
        return logits if parts.target else logits[:, :-1], self._wanted(parts)

    def _wanted(self, parts: Sequences) -> Tensor:
        wanted = super()._wanted(parts)
        return wanted if parts.starts is None else wanted.masked_fill(parts.starts[:, 1:], IGNORED)

    def _beside_logits(self, labels: Tensor, parts: Sequences) -> Tensor:
        return labels if parts.target else labels[:, 1:]


class MaskedLM(_Tokens):
    """The tokens that have labels, from all others (or one class for each token, as in tagging).

    Of an encoder-decoder model, the target's.

    Examples
    --------
    >>> network = nn.Sequential(nn.Embedding(16, 16))
    >>> tokens, labels = torch.tensor([[3, 1, 4]]), torch.tensor([[-100, 7, -100]])
    >>> MaskedLM()(network, {"input": tokens, "labels": labels}).loss.shape
    torch.Size([1])
    """

    name = "masked_lm"

    def check(self, model: Model, batch: Any) -> int | None:
        """Check the model's logits, and that a batch has labels: they alone say what is predicted.

        Raises
        ------
        TrakStoreError
            When there are none, or logits and labels do not fit together.
        """
        if not isinstance(batch, Mapping) or "labels" not in batch:
            raise TrakStoreError("masked_lm needs dicts with 'labels', -100 where nothing is asked")
        return super().check(model, batch)


def _moved(ids: Any, labels: Tensor) -> bool:
    """Tell whether each label is the token after its own."""
    if not isinstance(ids, Tensor) or ids.shape != labels.shape or labels.ndim != 2:
        return False
    # A text of one token, repeated, is the same moved or not: such labels are right.
    asked = labels != IGNORED
    after = (labels[:, :-1] == ids[:, 1:]) | ~asked[:, :-1]
    return bool(asked.any() and after.all() and not ((labels == ids) | ~asked).all())

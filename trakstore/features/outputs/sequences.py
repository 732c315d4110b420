"""Batches of sequences: arguments of the model, and the token that each of its logits is to predict."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trakstore.errors import TrakStoreError
from trakstore.features.outputs.model_output import (
    Model,
    inner_model,
    need_tensor,
    parameters_of,
    widened,
)

__all__ = ["IGNORED", "Sequences", "sequences"]

IGNORED = -100  # a label that stands for no token, as in torch and transformers

# Whether a token begins a text, by what a column says of the token before and of its own.
_BEGINS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "attention_mask": lambda before, _: before == 0,
    "position_ids": lambda before, own: own <= before,
    "seq_idx": lambda before, own: own != before,
}
_DECODER = ("decoder_input_ids", "decoder_inputs_embeds")
_SHIFTS = ("prepare_decoder_input_ids_from_labels", "_shift_right")  # transformers' names


@dataclass(frozen=True)
class Sequences:
    """A batch, taken apart.

    Attributes
    ----------
    labels : Tensor of integers, shape (batch, length)
        Tokens to be predicted, -100 where nothing is asked.
    arguments, keywords : tuple and dict
        Arguments that the model is called with.
    ids : Tensor or None
        Tokens that a model without a decoder of its own reads.
    target : bool
        Whether labels are the target of an encoder-decoder model. Each then stands beside the logits
        that predict it, since the model moves the decoder's input.
    starts : Tensor of bool, shape (batch, length), or None
        Tokens that no token before them predicts: the first behind padding at the left, and the first
        of each document of a pack.
    """

    labels: Tensor
    arguments: tuple[Any, ...] = ()
    keywords: dict[str, Any] = field(default_factory=dict)
    ids: Tensor | None = None
    target: bool = False
    starts: Tensor | None = None

    def logits(self, model: Model) -> Tensor:
        """Compute logits of each position: ``.logits`` or the first of several answers."""
        answer = model(*self.arguments, **self.keywords)
        answer = getattr(answer, "logits", answer)
        if isinstance(answer, tuple | list) and answer:
            answer = answer[0]
        return widened(need_tensor(answer, "the model's logits"))

    @property
    def numbers(self) -> Tensor:
        """Places of all tokens, counted from 0 behind padding at the left, (batch, length) int64."""
        mask = self.keywords.get("attention_mask")
        if not self.target and isinstance(mask, Tensor) and mask.shape == self.labels.shape:
            return (mask != 0).cumsum(1) - 1
        return torch.arange(self.labels.shape[1], device=self.labels.device).expand_as(self.labels)

    def relabelled(self, batch: Any, labels: Tensor) -> Any:
        """Return the batch that these are the parts of, with other labels.

        Raises
        ------
        TrakStoreError
            When the model makes its decoder's inputs of the labels on its way.
        """
        if not isinstance(batch, Mapping):
            return (*self.arguments, labels)
        if "labels" in self.keywords:
            raise TrakStoreError(
                "labels cannot be drawn for a model that makes its decoder's inputs of 'labels' in its "
                "own forward: give 'decoder_input_ids' too"
            )
        # Inputs that follow from the labels stay those of the true ones.
        inputs = {name: self.keywords[name] for name in _DECODER if name in self.keywords}
        return {**batch, **inputs, "labels": labels}


def sequences(model: Model, batch: Any, name: str) -> Sequences:
    """Take a batch apart for the output called ``name``.

    Raises
    ------
    TrakStoreError
        When something is missing, or there is more than can be understood.
    """
    inner = inner_model(model)
    if _has_decoder(inner, batch):
        return _targets(inner, batch, name)
    if isinstance(batch, Mapping):
        parts = _of_keywords(batch)
    else:
        parts = _of_tuple((batch,) if isinstance(batch, Tensor) else tuple(batch))
    if "targets" in parameters_of(inner) and "targets" not in parts.keywords:
        # nanoGPT's forward gives the logits of all positions only where it gets the tokens to come.
        return replace(parts, keywords=parts.keywords | {"targets": parts.labels.clamp(min=0)})
    if "position_ids" in parts.keywords and "use_cache" in parameters_of(inner):
        # transformers keep the documents of a pack apart only where no cache is made, as in training.
        return replace(parts, keywords={"use_cache": False} | parts.keywords)
    return parts


def _of_keywords(batch: Mapping[str, Any]) -> Sequences:
    if "labels" not in batch and "label" in batch:
        raise TrakStoreError("rows have 'label': call a sequence's tokens 'labels'")
    if "labels" not in batch and "input_ids" not in batch:
        raise TrakStoreError(f"a batch needs 'labels' or 'input_ids', got {sorted(batch)}")
    ids, mask = batch.get("input_ids"), batch.get("attention_mask")
    # Without labels every token is to be predicted; never those that only fill up.
    labels = need_tensor(batch.get("labels", ids), "labels")
    if isinstance(mask, Tensor) and mask.shape == labels.shape:
        labels = labels.masked_fill(mask == 0, IGNORED)
    return Sequences(
        labels, (), _without(batch, "labels"), ids, starts=_starts(batch, labels.shape)
    )


def _starts(batch: Mapping[str, Any], shape: tuple[int, ...]) -> Tensor | None:
    """Find tokens that no token before them predicts, by columns that have the labels' shape."""
    begun = [
        test(before, own)
        for name, test in _BEGINS.items()
        if isinstance(column := batch.get(name), Tensor) and column.shape == shape
        for before, own in [(column[:, :-1], column[:, 1:])]
    ]
    if not begun or len(shape) != 2:
        return None
    return F.pad(torch.stack(begun).any(0), (1, 0))


def _of_tuple(batch: tuple[Any, ...]) -> Sequences:
    if not 1 <= len(batch) <= 2:
        raise TrakStoreError(
            f"sequences are (input_ids,) or (input_ids, labels), got {len(batch)} entries: give "
            f"dicts with 'input_ids', 'attention_mask' and 'labels'"
        )
    return Sequences(need_tensor(batch[-1], "labels"), batch[:1], {}, batch[0])


def _targets(inner: Any, batch: Any, name: str) -> Sequences:
    """Take a batch of an encoder-decoder model apart, whose encoder's mask is not the target's."""
    if not isinstance(batch, Mapping) or "labels" not in batch:
        got = sorted(batch) if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
        raise TrakStoreError(
            f"{name} of an encoder-decoder model needs dicts with 'labels', the target's tokens (-100 "
            f"where nothing is asked), got {got}"
        )
    labels = need_tensor(batch["labels"], "labels")
    keywords = _without(batch, "labels")
    if not any(key in batch for key in _DECODER):
        keywords |= _decoder_inputs(inner, labels)
    mask = batch.get("decoder_attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 2:
        if mask.shape != labels.shape:
            raise TrakStoreError(
                f"labels have shape {tuple(labels.shape)}, decoder_attention_mask "
                f"{tuple(mask.shape)}: both are of the target, so of one shape"
            )
        labels = labels.masked_fill(mask == 0, IGNORED)
    return Sequences(labels, (), keywords, target=True)


def _decoder_inputs(inner: Any, labels: Tensor) -> dict[str, Tensor]:
    """Return labels moved as the model does it; or the labels, where it moves them on its way."""
    shift = next((getattr(inner, one) for one in _SHIFTS if hasattr(inner, one)), None)
    if shift is None and "labels" in parameters_of(inner):
        return {"labels": labels}
    if shift is None:
        raise TrakStoreError(
            f"{type(inner).__name__} does not make the decoder's inputs of 'labels': give "
            f"'decoder_input_ids' too"
        )
    try:
        return {"decoder_input_ids": shift(labels)}
    except ValueError as error:
        raise TrakStoreError(
            f"{type(inner).__name__} cannot make the decoder's inputs of 'labels' ({error}): set that, "
            f"or give 'decoder_input_ids' too"
        ) from error


def _has_decoder(inner: Any, batch: Any) -> bool:
    """Tell whether the model reads one sequence and writes another."""
    if isinstance(batch, Mapping) and any(key in batch for key in _DECODER):
        return True
    says = getattr(getattr(inner, "config", None), "is_encoder_decoder", False)
    return bool(says) and "decoder_input_ids" in parameters_of(inner)


def _without(batch: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in batch.items() if key != name}

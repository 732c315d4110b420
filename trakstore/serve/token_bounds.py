"""Bounds of token ids and of their number, from the model and the tokenizer of a job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from trakstore.serve.like_example import MOST_NUMBERS
from trakstore.serve.question import BadQuestionError

_IGNORED = -100  # label of tokens without a loss, as in transformers


@dataclass(frozen=True)
class TokenBounds:
    """Most tokens of a sample, and the range of each field of integers as far as it is known.

    On a GPU an integer beyond its embedding would stop the work of the whole process, and a long sample
    would take all memory.

    Attributes
    ----------
    tokens : int
        Most tokens of a sample.
    counts : mapping of str to int
        Rows of the embedding of each field: its integers must be below that.
    aligned : bool
        Whether labels are for the tokens at their positions; not if an encoder reads the tokens.
    """

    tokens: int
    counts: Mapping[str, int]
    aligned: bool = True

    @classmethod
    def of(cls, model: Any, tokenizer: Any) -> TokenBounds:
        """Read the bounds from a transformers model and its tokenizer; other models have none."""
        config = getattr(model, "config", None)
        positions = _whole(config, "max_position_embeddings")
        words = [None if tokenizer is None else len(tokenizer), _rows_of_words(model)]
        counts = {
            "input_ids": min((one for one in words if one), default=None),
            "token_type_ids": _whole(config, "type_vocab_size"),
            "position_ids": positions,
        }
        tokens = [_whole(tokenizer, "model_max_length"), positions, MOST_NUMBERS]
        known = {name: one for name, one in counts.items() if one}
        aligned = getattr(config, "is_encoder_decoder", False) is not True
        return cls(min(one for one in tokens if one), known, aligned)

    def check(self, sample: Any, example: Any) -> None:
        """Raise a :class:`BadQuestionError` for a sample beyond the bounds, or unlike the job's own."""
        if not isinstance(sample, Mapping) or "input_ids" not in sample:
            return
        length = np.asarray(sample["input_ids"]).size
        if not 1 <= length <= self.tokens:
            raise BadQuestionError(
                f"the sample has {length:,} tokens; 1 to {self.tokens:,} are needed"
            )
        for name, count in self.counts.items():
            if name in sample:
                _need_within(np.asarray(sample[name]), 0, count, "token ids", name)
        labels = np.asarray(sample.get("labels", []))
        # A causal model shifts labels by one: labels of another length would belong to other tokens.
        if self.aligned and _labels_each(example) and not _labels_each(sample):
            raise BadQuestionError(
                f"the sample has {labels.size:,} labels of {length:,} tokens: each token needs one"
            )
        if "input_ids" in self.counts and labels.ndim and labels.dtype.kind in "iu":
            learned = labels[labels != _IGNORED]
            _need_within(learned, 0, self.counts["input_ids"], "token ids", "labels")


def _labels_each(sample: Any) -> bool:
    """Tell whether a sample has a label for each token."""
    labels, ids = (np.shape(sample.get(name)) for name in ("labels", "input_ids"))
    return len(labels) == 1 and labels == ids


def _need_within(values: Any, low: int, count: int, what: str, name: str) -> None:
    if values.size and (values.min() < low or values.max() >= count):
        raise BadQuestionError(
            f"{what} must be from {low} to {count - 1}, got {values.min()} to {values.max()} in {name}"
        )


def _whole(owner: Any, name: str) -> int | None:
    value = getattr(owner, name, None)
    return value if isinstance(value, int) and value > 0 else None


def _rows_of_words(model: Any) -> int | None:
    find = getattr(model, "get_input_embeddings", None)
    if find is None:
        return None
    try:
        return _whole(find(), "num_embeddings")
    except NotImplementedError:  # raised by transformers for models without one
        return None

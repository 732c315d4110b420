"""Bounds of token ids and of their number, from the model and the tokenizer of a job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from trakstore.serve.like_example import MOST_NUMBERS
from trakstore.serve.question import BadQuestionError

_IGNORED = -100  # the label of tokens that have no loss, as transformers has it


@dataclass(frozen=True)
class TokenBounds:
    """Most tokens of a sample, and the range of each field of integers as far as it is known.

    On a GPU an integer that its embedding has no row of would end the work of the process, and a long
    sample takes all memory.

    Attributes
    ----------
    tokens : int
        Most tokens of a sample.
    counts : mapping of str to int
        Rows of the embedding of a field: its integers are below that.
    """

    tokens: int
    counts: Mapping[str, int]

    @classmethod
    def of(cls, model: Any, tokenizer: Any) -> TokenBounds:
        """Take what a transformers model and its tokenizer say; other models say nothing."""
        config = getattr(model, "config", None)
        positions = _whole(config, "max_position_embeddings")
        words = [None if tokenizer is None else len(tokenizer), _rows_of_words(model)]
        counts = {
            "input_ids": min((one for one in words if one), default=None),
            "token_type_ids": _whole(config, "type_vocab_size"),
            "position_ids": positions,
        }
        tokens = [_whole(tokenizer, "model_max_length"), positions, MOST_NUMBERS]
        return cls(
            min(one for one in tokens if one), {name: one for name, one in counts.items() if one}
        )

    def check(self, sample: Any) -> None:
        """Raise a :class:`BadQuestionError` for a sample beyond the bounds."""
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
        if "input_ids" in self.counts and labels.ndim and labels.dtype.kind in "iu":
            learned = labels[labels != _IGNORED]
            _need_within(learned, 0, self.counts["input_ids"], "token ids", "labels")


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
    except NotImplementedError:  # as transformers says of models without one
        return None

"""Conversations as rows of tokens in which the assistant's count, and a search for wrong rows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trakstore.errors import TrakStoreError
from trakstore.features.fingerprint import dataset_rows
from trakstore.features.outputs.sequences import IGNORED
from trakstore.features.reading import read_sample
from trakstore.quantities import as_whole, shown


def chat_rows(
    conversations: Sequence[Sequence[Mapping[str, Any]]],
    tokenizer: Any,
    *,
    max_length: int | None = None,
) -> list[dict[str, Tensor]]:
    """Tokenise conversations by a chat template, with labels where the assistant speaks.

    Where the template marks the assistant's tokens (``{% generation %}``), the marks are used. Where it
    does not, a turn of the assistant is all that the template adds for it after the turns before it and
    the prompt for an answer.

    Parameters
    ----------
    conversations : sequence of sequence of dict
        Turns of each conversation, with ``"role"`` and ``"content"``.
    tokenizer : transformers.PreTrainedTokenizerBase
        With a chat template.
    max_length : int, optional
        Most tokens of a row; later ones are cut off.

    Returns
    -------
    list of dict of Tensor
        ``input_ids``, and ``labels`` that are -100 outside of the assistant's turns, each of shape
        (length,). A collator must keep these labels, as ``DataCollatorForSeq2Seq(tokenizer,
        label_pad_token_id=-100)`` does; ``DataCollatorForLanguageModeling`` makes others.

    Raises
    ------
    TrakStoreError
        When a conversation has no turn of the assistant within its length, a turn has no role, there is
        no template, or it does not keep the turns before a turn as they were.

    Examples
    --------
    >>> turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    >>> from transformers import AutoTokenizer  # doctest: +SKIP
    >>> tokenizer = AutoTokenizer.from_pretrained("Qwen/Qwen2.5-0.5B-Instruct")  # doctest: +SKIP
    >>> rows = chat_rows([turns], tokenizer)  # doctest: +SKIP
    >>> tokenizer.decode(rows[0]["labels"][rows[0]["labels"] != -100])  # doctest: +SKIP
    """
    if max_length is not None:
        max_length = as_whole(max_length, "max_length", 1)
    if not isinstance(getattr(tokenizer, "chat_template", None), str):
        raise TrakStoreError("the tokenizer has no chat template: set tokenizer.chat_template")
    rows = []
    for number, turns in enumerate(conversations):
        if not all(isinstance(turn, Mapping) and "role" in turn for turn in turns):
            raise TrakStoreError(
                f"conversation {number} needs turns with 'role' and 'content', got {shown(turns)}"
            )
        ids, counted = _marked(turns, tokenizer)
        if not any(counted):
            ids, counted = _by_turns(turns, tokenizer, number)
        if not any(counted[:max_length]):
            raise TrakStoreError(
                f"conversation {number} has no token of the assistant among its first "
                f"{max_length or len(ids)}; leave it out, or give a larger max_length"
            )
        kept = torch.tensor(ids[:max_length])
        mask = torch.tensor(counted[:max_length], dtype=torch.bool)
        rows.append({"input_ids": kept, "labels": kept.masked_fill(~mask, IGNORED)})
    return rows


def _marked(turns: Any, tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the tokens of a conversation, and the template's own marks; no marks where it has none."""
    if not re.search(r"\{%[-+]?\s*generation\b", tokenizer.chat_template):
        return [], []
    made = tokenizer.apply_chat_template(
        turns, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    return list(made["input_ids"]), list(made["assistant_masks"])


def _by_turns(turns: Any, tokenizer: Any, number: int) -> tuple[list[int], list[int]]:
    """Return the tokens of a conversation, and which of them a turn of the assistant added."""
    ids = _tokens(turns, tokenizer)
    counted = [0] * len(ids)
    for at, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        # Some templates write nothing, or fail, for no turns: then the assistant's turn begins the row.
        before = _tokens(turns[:at], tokenizer, prompt=True) if at else []
        after = _tokens(turns[: at + 1], tokenizer)
        if ids[: len(before)] != before or ids[: len(after)] != after:
            raise TrakStoreError(
                f"conversation {number}: the chat template writes earlier turns otherwise once turn "
                f"{at} has come, so that the assistant's tokens cannot be told; mark them in the "
                f"template ({{% generation %}} ... {{% endgeneration %}})"
            )
        counted[len(before) : len(after)] = [1] * (len(after) - len(before))
    return ids, counted


def _tokens(turns: Any, tokenizer: Any, prompt: bool = False) -> list[int]:
    made = tokenizer.apply_chat_template(
        turns, tokenize=True, add_generation_prompt=prompt, return_dict=True
    )
    return list(made["input_ids"])


@dataclass(frozen=True)
class TokenCounts:
    """Counts of the rows of a data set of tokens.

    Attributes
    ----------
    rows, tokens, counted : int
        Rows, their tokens without padding, and the tokens that have a label.
    without_labels : tuple of int
        Positions of rows in which no token counts: they have no gradient.
    doubled_starts : tuple of int
        Positions of rows that begin with two beginning-of-sequence tokens, as when a template and a
        tokenizer each add one.
    cut : tuple of int
        Positions of rows of the greatest length that do not end in an end-of-sequence token.

    Examples
    --------
    >>> counts = count_tokens([{"input_ids": [5, 6], "labels": [-100, -100]}])
    >>> counts.tokens, counts.counted, counts.without_labels
    (2, 0, (0,))
    """

    rows: int
    tokens: int
    counted: int
    without_labels: tuple[int, ...]
    doubled_starts: tuple[int, ...]
    cut: tuple[int, ...]

    def __str__(self) -> str:
        faults = {
            "without a label": self.without_labels,
            "with two starts": self.doubled_starts,
            "cut off": self.cut,
        }
        words = [
            f"{len(where)} {what} (row {where[0]}{', ...' if len(where) > 1 else ''})"
            for what, where in faults.items()
            if where
        ]
        told = f"; {', '.join(words)}" if words else ""
        share = f"{self.counted} of them count ({self.counted / max(1, self.tokens):.0%})"
        return f"{self.rows} rows, {self.tokens} tokens, {share}{told}"


def count_tokens(dataset: Any, tokenizer: Any = None) -> TokenCounts:
    """Count the tokens of a data set that have a label, and find rows that look wrong.

    Parameters
    ----------
    dataset : map-style data set
        Dicts with ``input_ids``, and ``labels`` and ``attention_mask`` where there are such.
    tokenizer : transformers.PreTrainedTokenizerBase, optional
        Tells the beginning- and end-of-sequence tokens; without it, neither doubled starts nor cut rows
        are looked for.

    Raises
    ------
    TrakStoreError
        For a data set whose samples are no such dicts.

    Examples
    --------
    >>> count_tokens([{"input_ids": [5, 6, 7], "labels": [-100, -100, 7]}, {"input_ids": [5]}])
    TokenCounts(rows=2, tokens=4, counted=1, without_labels=(1,), doubled_starts=(), cut=())
    """
    count = dataset_rows(dataset)
    start, end = (getattr(tokenizer, f"{which}_token_id", None) for which in ("bos", "eos"))
    rows = [_row(read_sample(dataset, index), index) for index in range(count)]
    longest = max(len(ids) for ids, _ in rows)
    labelled = [int((labels[1:] != IGNORED).sum()) for _, labels in rows]
    return TokenCounts(
        count,
        sum(len(ids) for ids, _ in rows),
        sum(labelled),
        tuple(i for i, found in enumerate(labelled) if not found),
        tuple(
            i
            for i, (ids, _) in enumerate(rows)
            if start is not None and ids[:2].tolist() == [start, start]
        ),
        tuple(
            i
            for i, (ids, _) in enumerate(rows)
            if end is not None and len(ids) == longest and int(ids[-1]) != end
        ),
    )


def _row(sample: Any, index: int) -> tuple[Tensor, Tensor]:
    """Return tokens and labels of a sample, without padding."""
    if not isinstance(sample, Mapping) or "input_ids" not in sample:
        got = sorted(sample) if isinstance(sample, Mapping) else type(sample).__name__
        raise TrakStoreError(f"row {index} needs 'input_ids', got {got}")
    ids = torch.as_tensor(sample["input_ids"]).reshape(-1)
    labels = torch.as_tensor(sample.get("labels", ids)).reshape(-1)
    mask = torch.as_tensor(sample.get("attention_mask", torch.ones_like(ids))).reshape(-1) != 0
    if not len(ids) == len(labels) == len(mask):
        raise TrakStoreError(
            f"row {index} has {len(ids)} input_ids, {len(labels)} labels and a mask of {len(mask)}"
        )
    return ids[mask], labels[mask]

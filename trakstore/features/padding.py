"""Rows of tokens, padded to one length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from trakstore.errors import TrakStoreError
from trakstore.features.outputs.sequences import IGNORED

__all__ = ["pad_tokens", "row_of_tokens"]


def pad_tokens(samples: list[Any]) -> dict[str, Tensor]:
    """Pad rows of tokens at the right to the longest of them: a ``collate`` of :class:`Job`.

    Parameters
    ----------
    samples : list of dict
        Each with ``input_ids`` of shape (length,). Columns of other shapes are left out.

    Returns
    -------
    dict of Tensor, shape (samples, longest)
        ``input_ids`` and the columns of the same length, padded with 0; ``labels`` padded with -100;
        ``attention_mask``, also where the samples have none.

    Raises
    ------
    TrakStoreError
        When a sample has no row of ``input_ids``.

    Examples
    --------
    >>> batch = pad_tokens([{"input_ids": [5, 6, 7]}, {"input_ids": [8], "url": "a"}])
    >>> batch["input_ids"].tolist(), batch["attention_mask"].tolist()
    ([[5, 6, 7], [8, 0, 0]], [[1, 1, 1], [1, 0, 0]])
    """
    rows = [_rows(sample) for sample in samples]
    if not rows:
        raise TrakStoreError("there are no samples to make a batch of")
    common = [name for name in rows[0] if all(name in row for row in rows)]
    return {
        name: pad_sequence(
            [row[name] for row in rows],
            batch_first=True,
            padding_value=IGNORED if name == "labels" else 0,
        )
        for name in common
    }


def _rows(sample: Any) -> dict[str, Tensor]:
    """Return the columns of a sample that have a number for each token, and a mask."""
    ids = row_of_tokens(sample)
    columns = {name: _as_row(value, len(ids)) for name, value in sample.items()}
    rows = {name: row for name, row in columns.items() if row is not None}
    return {"attention_mask": torch.ones(len(ids), dtype=torch.int64)} | rows


def row_of_tokens(sample: Any) -> Tensor:
    """Return ``input_ids`` of a sample, of shape (length,).

    Raises
    ------
    TrakStoreError
        When it has none.
    """
    ids = sample.get("input_ids") if isinstance(sample, Mapping) else None
    row = None if ids is None else torch.as_tensor(ids)
    if row is None or row.ndim != 1:
        got = sorted(sample) if isinstance(sample, Mapping) else type(sample).__name__
        raise TrakStoreError(f"rows of tokens are dicts with 'input_ids', one list each, got {got}")
    return row


def _as_row(value: Any, length: int) -> Tensor | None:
    if not isinstance(value, list | tuple | Tensor) and not hasattr(value, "__array__"):
        return None
    try:
        row = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):  # texts, lists of several lengths
        return None
    return row if row.shape == (length,) else None

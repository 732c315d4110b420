"""Batches of sequences of similar length, so that little of them is padding."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["MOST_PADDING", "POOL", "batches_by_length", "padded_share", "sequence_length"]

POOL = 32  # batches of samples that are read together and sorted
MOST_PADDING = 0.1  # share of a batch


def sequence_length(sample: Any) -> int | None:
    """Return the number of tokens of a sample's sequences; None where it has no token ids.

    Labels of another length than the tokens are a sequence of their own.

    Examples
    --------
    >>> sequence_length({"input_ids": [5, 6, 7], "labels": [5, 6, 7]})
    3
    >>> sequence_length({"input_ids": [5, 6, 7], "labels": [8, 9]})
    5
    """
    if not isinstance(sample, Mapping):
        return None
    ids = [one for name, one in sample.items() if str(name).endswith("input_ids")]
    sizes = [len(one) for one in ids if _is_row(one)]
    if not sizes:
        return None
    labels: Any = sample.get("labels")
    if _is_row(labels) and len(labels) not in sizes:
        sizes.append(len(labels))
    return sum(sizes)


def padded_share(lengths: NDArray[np.int64]) -> float:
    """Return the share of padding when sequences are padded to the longest of them.

    Examples
    --------
    >>> padded_share(np.array([4, 2, 3]))
    0.25
    """
    return 1 - float(lengths.mean() / max(1, lengths.max()))


def batches_by_length(lengths: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    """Divide sequences into batches of at most ``size``, at most a tenth of each padding.

    The batches depend on the lengths alone, not on the worker: features computed by several workers
    equal those of one to the bit.

    Parameters
    ----------
    lengths : ndarray of int64, shape (n,)
        Tokens of each sequence.
    size : int
        Most sequences of a batch.

    Returns
    -------
    list of ndarray of int64
        Positions of the sequences of each batch. The longest come first, so that too little memory
        shows early.

    Examples
    --------
    >>> [batch.tolist() for batch in batches_by_length(np.array([10, 50, 9, 48, 10]), 2)]
    [[1, 3], [0, 4], [2]]
    """
    order = np.argsort(-lengths, kind="stable")
    batches, begin, tokens = [], 0, 0
    for at, length in enumerate(lengths[order].tolist()):
        longest, count = int(lengths[order[begin]]), at - begin
        # A batch ends before it would be mostly padding, with one long sequence and many short ones.
        if count == size or (
            count and tokens + length < (1 - MOST_PADDING) * longest * (count + 1)
        ):
            batches.append(order[begin:at])
            begin, tokens = at, 0
        tokens += length
    return [*batches, order[begin:]]


def _is_row(value: Any) -> bool:
    """Tell whether a value is one sequence: a list, array or tensor of one dimension."""
    if hasattr(value, "ndim"):
        return bool(value.ndim == 1)
    return isinstance(value, Sized) and not isinstance(value, str | bytes | Mapping)

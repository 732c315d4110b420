"""Rows of a batch that are those of its samples, each in its place, whatever the others are."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from copy import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as tree

__all__ = ["copied_sample", "out_of_place", "reuses_memory"]

_FEW = 4  # samples that are read to see whether one is written over another
_ROUNDING = 1e-4  # share of a batch's largest number that sums in another order may differ by


def out_of_place(make: Callable[[list[Any]], Any], samples: list[Any], batch: Any) -> str:
    """Say what a collator makes of samples beside others; nothing where each has its own row.

    In another order, samples must make the same rows in that order: those that are sorted do not, or
    that have another's label. And the longest sample must have by itself what it has in the batch; the
    shortest, which may be padded there, no more.

    Parameters
    ----------
    make : callable
        Makes a batch, a tree of tensors with a row for each sample, of samples, which it may change.
    samples : list
        At least one; they stay as they are.
    batch : tree of Tensor
        The batch of all.
    """
    count = len(samples)
    if count < 2:
        return ""

    def made(some: Sequence[int]) -> Any:
        return make([copied_sample(samples[at]) for at in some])

    # Neither a batch that is turned round nor one that is moved on by some samples goes with this.
    order = [-at % count for at in range(count)] if count > 2 else [1, 0]
    back = tree.tree_map(lambda leaf: leaf[order], made(order))
    if not _all_same(batch, back):
        return "gives them other rows when they come in another order"
    sizes = [_size(one) for one in samples]
    longest, shortest = int(np.argmax(sizes)), int(np.argmin(sizes))
    row = tree.tree_map(lambda leaf: leaf[longest : longest + 1], batch)
    if not _all_same(row, made([longest])) or _is_cut(batch, made([shortest])):
        return "gives one of them less, or something else, than alone"
    return ""


def reuses_memory(read: Callable[[int], Any], count: int) -> bool:
    """Tell whether a data set writes a sample over one that it gave before, by the first few.

    Parameters
    ----------
    read : callable
        Reads the sample at a position.
    count : int
        Samples of the data set.
    """
    first = read(0)
    before = copied_sample(first)
    for at in range(1, min(_FEW, count)):
        read(at)
    leaves, others = tree.tree_leaves(first), tree.tree_leaves(before)
    return len(leaves) != len(others) or not all(map(_unchanged, leaves, others))


def copied_sample(sample: Any) -> Any:
    """Return a sample in memory of its own."""

    def copied(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf.clone()
        return copy(leaf) if isinstance(leaf, np.ndarray | MutableMapping) else leaf

    return tree.tree_map(copied, sample)


def _unchanged(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    return not isinstance(one, int | float | str | np.generic) or bool(one == other)


def _size(sample: Any) -> int:
    return sum(getattr(leaf, "nbytes", 1) for leaf in tree.tree_leaves(sample))


def _all_same(one: Any, other: Any) -> bool:
    leaves, others = tree.tree_leaves(one), tree.tree_leaves(other)
    return len(leaves) == len(others) and all(map(_same, leaves, others))


def _is_cut(batch: Any, alone: Any) -> bool:
    """Tell whether samples in a batch have less room than one that is alone."""
    leaves, others = tree.tree_leaves(batch), tree.tree_leaves(alone)
    return len(leaves) != len(others) or any(
        len(one.shape) != len(other.shape)
        or any(b > a for a, b in zip(one.shape[1:], other.shape[1:], strict=True))
        for one, other in zip(leaves, others, strict=True)
    )


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.is_floating_point() or not one.numel():
        return torch.equal(one, other)
    one, other = one.double(), other.double()
    most = float(one.abs().nan_to_num(0, 0, 0).max())
    return torch.allclose(one, other, rtol=0, atol=_ROUNDING * most, equal_nan=True)

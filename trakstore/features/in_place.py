"""Rows of a batch that are those of its samples, each in its place, whatever the others are."""

from __future__ import annotations

from collections.abc import Callable
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

    In reverse order, samples must make the same rows in reverse: those that are sorted do not, or that
    have another's label. And the longest and the shortest sample must have by itself what it has in
    the batch, or less where it is padded there.

    Parameters
    ----------
    make : callable
        Makes a batch, a tree of tensors with a row for each sample, of samples.
    samples : list
        At least one.
    batch : tree of Tensor
        The batch of all.
    """
    if len(samples) < 2:
        return ""
    back = tree.tree_map(lambda leaf: leaf.flip(0), make(samples[::-1]))
    if not _all_same(batch, back):
        return "gives them other rows when they come in another order"
    sizes = [_size(one) for one in samples]
    for at in {int(np.argmax(sizes)), int(np.argmin(sizes))}:
        alone = make([samples[at]])
        own = tree.tree_map(lambda leaf, at=at: leaf[at : at + 1], batch)
        if _is_less(own, alone):
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
        return leaf.copy() if isinstance(leaf, np.ndarray) else leaf

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


def _is_less(own: Any, alone: Any) -> bool:
    """Tell whether a sample's row of a batch lacks something of the row that it makes alone."""
    leaves, others = tree.tree_leaves(own), tree.tree_leaves(alone)
    if len(leaves) != len(others):
        return True
    for row, other in zip(leaves, others, strict=True):
        longer = [a > b for a, b in zip(other.shape, row.shape, strict=False)]
        if row.ndim != other.ndim or any(longer):
            return True
        if row.shape == other.shape and not _same(row, other):
            return True
    return False


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.is_floating_point() or not one.numel():
        return torch.equal(one, other)
    most = float(one.abs().nan_to_num(0, 0, 0).max())
    return torch.allclose(one, other, rtol=0, atol=_ROUNDING * most, equal_nan=True)

"""A check that a collator gives each sample its own row of the batch, in its place."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from copy import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as tree

__all__ = ["copied_sample", "out_of_place", "reuses_memory"]

_FEW = 4  # samples that are read to see whether one overwrites another
_ROUNDING = 1e-4  # share of a batch's largest number by which sums in another order may differ


def out_of_place(make: Callable[[list[Any]], Any], samples: list[Any], batch: Any) -> str:
    """Say what a collator does wrong; an empty text where each sample has its own row.

    Samples in another order must make the same rows in that order, which those that are sorted, or have
    another sample's label, do not. And the longest and the shortest sample alone must make no longer
    rows than in the batch, and the same rows where the batch does not pad them.

    Parameters
    ----------
    make : callable
        Makes a batch, a tree of tensors with a row for each sample, from samples, which it may change.
    samples : list
        Samples of the batch, one or more; they stay as they are.
    batch : tree of Tensor
        The batch that the collator made of all of them.
    """
    count = len(samples)
    if count < 2:
        return ""

    def made(some: Sequence[int]) -> Any:
        return make([copied_sample(samples[at]) for at in some])

    # A reflection: neither a collator that reverses its samples nor one that rotates them by one
    # commutes with it.
    # it.
    order = [-at % count for at in range(count)] if count > 2 else [1, 0]
    back = tree.tree_map(lambda leaf: leaf[order], made(order))
    if not _all_same(batch, back):
        return "gives them other rows when they come in another order"
    sizes = [_size(one) for one in samples]
    for at in {int(np.argmax(sizes)), int(np.argmin(sizes))}:
        row = tree.tree_map(lambda leaf, at=at: leaf[at : at + 1], batch)
        if _is_other(row, made([at])):
            return "gives one of them less, or something else, than alone"
    return ""


def reuses_memory(read: Callable[[int], Any], count: int) -> bool:
    """Tell from the first samples whether a data set may write a sample over an earlier one.

    Parameters
    ----------
    read : callable
        Reads the sample at a position.
    count : int
        Samples of the data set.
    """
    first = read(0)
    before, places = _leaves(copied_sample(first)), _places(first)
    for at in range(1, min(_FEW, count)):
        if places & _places(read(at)):
            return True
    leaves = _leaves(first)
    return len(leaves) != len(before) or not all(map(_unchanged, leaves, before))


def copied_sample(sample: Any) -> Any:
    """Return a sample in memory of its own."""

    def copied(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf.clone()
        made = copy(leaf) if isinstance(leaf, np.ndarray | MutableMapping) else leaf
        if isinstance(made, MutableMapping):
            for name, value in leaf.items():
                made[name] = copied_sample(value)
        return made

    return tree.tree_map(copied, sample)


def _leaves(sample: Any) -> list[Any]:
    """Return the leaves of a sample, also those within mappings of any class."""
    leaves = tree.tree_leaves(sample)
    if not any(isinstance(leaf, MutableMapping) for leaf in leaves):
        return leaves
    plain = [dict(leaf) if isinstance(leaf, MutableMapping) else leaf for leaf in leaves]
    return _leaves(plain)


def _places(sample: Any) -> set[int]:
    """Return the addresses of a sample's numbers in memory."""
    leaves = _leaves(sample)
    tensors = {one.data_ptr() for one in leaves if isinstance(one, Tensor) and one.numel()}
    arrays = {one.ctypes.data for one in leaves if isinstance(one, np.ndarray) and one.size}
    return tensors | arrays


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


def _is_other(row: Any, alone: Any) -> bool:
    """Tell whether a sample's row of a batch is anything but its own row, padded."""
    leaves, others = tree.tree_leaves(row), tree.tree_leaves(alone)
    if [leaf.ndim for leaf in leaves] != [leaf.ndim for leaf in others]:
        return True
    if all(one.shape == other.shape for one, other in zip(leaves, others, strict=True)):
        return not _all_same(row, alone)
    return any(
        longer > size
        for one, other in zip(leaves, others, strict=True)
        for size, longer in zip(one.shape, other.shape, strict=True)
    )


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if torch.equal(one, other):
        return True
    if not one.is_floating_point():
        return False
    one, other = one.double(), other.double()
    most = float(one.abs().nan_to_num(0, 0, 0).max())
    return torch.allclose(one, other, rtol=0, atol=_ROUNDING * most, equal_nan=True)

"""Samples of a split as they are read: in batches that are padded, or in those of one shape alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree as tree

from trakstore.errors import TrakStoreError
from trakstore.features.batches import Batches
from trakstore.features.in_place import copied_sample
from trakstore.features.sorted_batches import batches_by_length, sequence_length
from trakstore.planning import ranges

__all__ = ["BatchReader", "Piece", "ReadBatch", "RowOrder"]

Piece: TypeAlias = tuple[int, int]
Rows: TypeAlias = NDArray[np.int64]

_PAIR = 2


class ReadBatch(NamedTuple):
    """Samples that were read as one batch.

    Attributes
    ----------
    rows : ndarray of int64, shape (n,)
        Row of each sample.
    padding : ndarray of int64, shape (n,)
        Numbers that each sample has fewer than the largest of the batch, which a collator may pad.
    batch : tree of Tensor
    """

    rows: Rows
    padding: Rows
    batch: Any


@dataclass
class BatchReader:
    """Reader of a split's samples in batches.

    Attributes
    ----------
    batches : Batches
    size : int
        Most samples of a batch.
    by_length : bool
        Whether samples are sorted by length, which is to be known of each then.
    each : int
        Rows one after the other that are one sample: all are in one batch.
    padded : bool
        Whether samples of several shapes are one batch, which the collator pads. Unset where that
        changes what a model computes: a batch is then of samples that have one shape by themselves.
    """

    batches: Batches
    size: int
    by_length: bool = False
    each: int = 1
    padded: bool = True

    def read(self, piece: Piece) -> list[ReadBatch]:
        """Read the samples from one row to another.

        They are in order, or sorted. Two samples stay one batch: by the first two an engine is checked.
        """
        return self.picked(np.arange(*piece))

    def picked(self, rows: Rows) -> list[ReadBatch]:
        """Read the samples at some rows; see :meth:`read`."""
        if not self.padded:
            return self._of_one_shape(rows.tolist())
        samples = [self.batches.sample(row) for row in rows.tolist()]
        return [
            ReadBatch(
                rows[part],
                self._padding([samples[at] for at in part]),
                self.batches.made([samples[at] for at in part], rows[part].tolist()),
            )
            for part in self._parts(samples, int(rows[0]))
        ]

    def together(self, rows: Rows) -> Any:
        """Read the samples at some rows as one batch."""
        return self.groups([rows])[0]

    def groups(self, groups: Sequence[Rows]) -> list[Any]:
        """Make a batch of each of some groups of rows, whose samples are read once."""
        wanted = np.unique(np.concatenate(groups)).tolist()
        samples = {row: self.batches.sample(row) for row in wanted}
        if len(groups) == 1:
            return [self._made(groups[0], samples)]
        # A collator may change what it is given.
        return [
            self._made(rows, {row: copied_sample(samples[row]) for row in rows.tolist()})
            for rows in groups
        ]

    def _made(self, rows: Rows, samples: Mapping[int, Any]) -> Any:
        own = rows.tolist()
        return self.batches.made([samples[row] for row in own], own)

    def _parts(self, samples: Sequence[Any], start: int) -> list[Rows]:
        if not self.by_length or len(samples) <= _PAIR:
            return [np.arange(*piece) for piece in ranges(len(samples), self.size)]
        whole = start % self.each == len(samples) % self.each == 0
        each = self.each if whole else 1
        lengths = np.array([_length(one) for one in samples[::each]])
        own = batches_by_length(lengths, max(1, self.size // each))
        return [(each * part[:, None] + np.arange(each)).ravel() for part in own]

    def _padding(self, samples: list[Any]) -> Rows:
        if self.batches.collate is None:
            return np.zeros(len(samples), dtype=np.int64)
        sizes = [_sizes(one) for one in samples]
        if len(set(map(len, sizes))) > 1:  # lists of several lengths
            sizes = [[sum(one)] for one in sizes]
        known = np.array(sizes, dtype=np.int64).reshape(len(samples), -1)
        padding: Rows = (known.max(0, initial=0) - known).sum(1)
        return padding

    def _of_one_shape(self, rows: Iterable[int]) -> list[ReadBatch]:
        """Read samples each by itself, and put together those that have one shape then."""
        groups = defaultdict[Any, list[tuple[int, Any]]](list)
        for row in rows:
            own = self.batches.made([self.batches.sample(row)], [row])
            groups[_form(own)].append((row, own))
        # The largest come first, so that memory that does not suffice is known early.
        groups_by_size = sorted(groups.values(), key=lambda group: -_numbers(group[0][1]))
        return [
            _joined(group[low:high])
            for group in groups_by_size
            for low, high in ranges(len(group), self.size)
        ]


@dataclass
class RowOrder:
    """Rows of a block in the order in which they were read.

    Attributes
    ----------
    batches : list of ndarray of int64
        Rows of each batch.
    padding : list of ndarray of int64
        Padding of each of them; see :class:`ReadBatch`.
    """

    batches: list[Rows] = field(default_factory=list)
    padding: list[Rows] = field(default_factory=list)

    def add(self, read: ReadBatch) -> None:
        """Add the rows of a batch."""
        self.batches.append(read.rows)
        self.padding.append(read.padding)

    @property
    def rows(self) -> Rows:
        """Number of each row in the split, int64."""
        return np.concatenate(self.batches)

    def most_padded(self, usable: NDArray[np.bool_]) -> int | None:
        """Return a row with most padding among the ``usable`` ones; None where none has any."""
        padding = np.where(usable, np.concatenate(self.padding), 0)
        return int(self.rows[padding.argmax()]) if padding.any() else None

    def beside(self, row: int) -> Rows:
        """Return the rows of the batch that a row was in."""
        return next(rows for rows in self.batches if row in rows)


def _length(sample: Any) -> int:
    length = sequence_length(sample)
    if length is None:
        raise TrakStoreError("some samples have 'input_ids', others none: give them to each")
    return length


def _sizes(sample: Any) -> list[int]:
    """Return the sizes of what a sample is made of; of tokens where it has such, and their labels.

    What else a sample of tokens has, such as a text, may be longer where its tokens are fewer.
    """
    if isinstance(sample, Mapping):
        ids = sorted(str(name) for name in sample if str(name).endswith("input_ids"))
        names = [*ids, "labels"] if ids else list(sample)
        return [_size(sample.get(name)) for name in names]
    several = isinstance(sample, tuple) or (isinstance(sample, list) and _is_nested(sample))
    return [_size(one) for one in sample] if several else [_size(sample)]


def _size(value: Any) -> int:
    """Count the numbers of a value, or the letters of a text."""
    if isinstance(value, Tensor):
        return value.numel()
    if hasattr(value, "ndim"):
        return int(value.size)
    if isinstance(value, Mapping):
        return sum(map(_size, value.values()))
    if isinstance(value, list | tuple) and _is_nested(value):
        return sum(map(_size, value))
    return len(value) if isinstance(value, Sized) else 1


def _is_nested(values: Sequence[Any]) -> bool:
    return bool(values) and isinstance(values[0], Sized)


def _form(batch: Any) -> tuple[Any, ...]:
    """Return what batches of one sample must have in common to be put together."""
    leaves = tree.tree_flatten_with_path(batch)[0]
    return tuple((tree.keystr(path), leaf.shape, leaf.dtype) for path, leaf in leaves)


def _numbers(batch: Any) -> int:
    return sum(leaf.numel() for leaf in tree.tree_leaves(batch))


def _joined(singles: list[tuple[int, Any]]) -> ReadBatch:
    rows = np.array([row for row, _ in singles], dtype=np.int64)
    batch = tree.tree_map(lambda *leaves: torch.cat(leaves), *(one for _, one in singles))
    return ReadBatch(rows, np.zeros_like(rows), batch)

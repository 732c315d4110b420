"""Comparison of a split's samples at several epochs, whose rows are combined by position.

Row i of one epoch may be added to row i of another only if both belong to one sample. Ids tell, and so
do fingerprints of the data sets if both epochs have them: a fingerprint covers all ids, in order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import SpecMismatchError
from trakstore.quantities import shown
from trakstore.spec.comparison import shortened
from trakstore.storage import layout
from trakstore.storage.backends.ahead import Wanted, read_ahead
from trakstore.storage.markers import marker_of, tail_of_chunk, wanted_marker
from trakstore.storage.split import Split

_ADVICE = (
    "rows of several epochs are put together by position, so featurize that epoch again (store.drop "
    "first) with the same samples and ids in the same order, or leave it out (epochs=, --epoch)"
)


class OtherSample(NamedTuple):
    """The first row in which two splits have different samples, with both ids."""

    row: int
    own: int | str
    other: int | str


def need_same_samples(*groups: Sequence[Split]) -> None:
    """Raise a :class:`SpecMismatchError` unless all of a group have the samples of its first, in order.

    Splits with equal fingerprints have equal ids, which are not read then. Otherwise a commit record
    has the checksum of each block's ids: checksums are compared, and ids read only where they differ.

    Parameters
    ----------
    groups : sequences of Split
        Each group is one split at several epochs, complete and with equally many rows.

    Raises
    ------
    SpecMismatchError
        For the first split that has another sample in some row, or is known to be of other data.
    """
    with _markers_together(groups):
        for like, *others in groups:
            for split in others:
                _need_same(split, like)


def _need_same(split: Split, like: Split) -> None:
    different = first_other_sample(split, like)
    if different is not None:
        raise SpecMismatchError(
            f"{_named(split)} has sample {shown(different.own)} in row {different.row}, where "
            f"{_named(like)} has {shown(different.other)}: {_ADVICE}"
        )
    own, other = split.spec.dataset, like.spec.dataset
    # Features that were given have no fingerprint: then only ids tell.
    if None not in (own, other) and own != other:
        raise SpecMismatchError(
            f"{_named(split)} was made from another data set than {_named(like)} (its fingerprint is "
            f"{shortened(own)}, the other's {shortened(other)}), though their ids are equal: {_ADVICE}"
        )


def first_other_sample(split: Split, like: Split) -> OtherSample | None:
    """Find the first row in which two splits of equally many rows have different samples.

    Returns
    -------
    OtherSample or None
        None if all rows are of the same samples.
    """
    if _same_data(split, like):
        return None
    own, other = _IdBlocks(split), _IdBlocks(like)
    # A number and a text are different ids, even if they are written alike.
    if own.dtype != other.dtype:
        return OtherSample(0, _plain(own.read(0, 1)), _plain(other.read(0, 1)))
    for start, stop in _pieces(split, like):
        if _same_checksum(split, like, start):
            continue
        here, there = own.read(start, stop), other.read(start, stop)
        unlike = np.flatnonzero(here != there)
        if len(unlike):
            row = int(unlike[0])
            return OtherSample(start + row, _plain(here[row:]), _plain(there[row:]))
    return None


def _same_data(split: Split, like: Split) -> bool:
    """Tell whether fingerprints show that both splits have the same ids in the same order."""
    own, other = split.spec, like.spec
    same_kind = dict(own.columns)[layout.SAMPLE_ID] == dict(other.columns)[layout.SAMPLE_ID]
    return own.dataset is not None and own.dataset == other.dataset and same_kind


def _pieces(split: Split, like: Split) -> Iterator[tuple[int, int]]:
    """Yield ranges of rows that end wherever a block of either split begins."""
    starts = [np.arange(0, split.rows, one.spec.block_rows) for one in (split, like)]
    return pairwise([*np.union1d(*starts).tolist(), split.rows])


def _same_checksum(split: Split, like: Split, start: int) -> bool:
    """Tell whether the commit records of the blocks that begin at a row have equal ids.

    If not, ids may still be equal: a stopped append stores more of them in the last block.
    """
    step = split.spec.block_rows
    if step != like.spec.block_rows:
        return False
    block = start // step
    return _tail(split, block) == _tail(like, block)


def _tail(split: Split, block: int) -> bytes:
    marker = marker_of(split.location, split.path, split.spec, block)
    return tail_of_chunk(split.spec, marker, layout.SAMPLE_ID, (block,))


def _markers_together(groups: Sequence[Sequence[Split]]) -> AbstractContextManager[None]:
    """Within, read the commit records to be compared at once instead of one after the other."""
    wanted = dict[str, Wanted]()
    for like, *others in groups:
        alike = [one for one in others if _by_checksum(one, like)]
        for one in [like, *alike] if alike and not like.location.near else []:
            for block in range(one.spec.blocks):
                marker = wanted_marker(one.location, one.path, one.spec, block)
                if marker is not None:
                    wanted[marker.key] = marker
    return read_ahead([*wanted.values()]) if wanted else nullcontext()


def _by_checksum(split: Split, like: Split) -> bool:
    """Tell whether checksums of blocks are compared."""
    return split.spec.block_rows == like.spec.block_rows and not _same_data(split, like)


class _IdBlocks:
    """Ids of a split; the block that was read last is kept."""

    def __init__(self, split: Split) -> None:
        self._spec, self._column = split.spec, split.column(layout.SAMPLE_ID)
        self._first, self._ids = -1, np.empty(0, self.dtype)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._column.dtype

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return the ids of some rows of one block."""
        first, last = self._spec.block_range(start // self._spec.block_rows)
        if first != self._first:
            self._first, self._ids = first, self._column.read(first, last)
        return self._ids[start - first : stop - first]


def _plain(ids: NDArray[Any]) -> int | str:
    """Return the first of some ids as Python's own number or text."""
    (one,) = ids[:1].tolist()
    return one  # type: ignore[no-any-return]


def _named(split: Split) -> str:
    return f"split {split.name!r} of epoch {split.epoch!r}"

"""Opening splits: document, commit records and what is left out, once, and all at once.

A query works on splits as they were when it opened them; whoever writes looks again.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import DamagedError, error_context
from trakstore.spec import SplitSpec
from trakstore.storage import layout
from trakstore.storage.backends.location import Location
from trakstore.storage.backends.together import together
from trakstore.storage.claims import last_claim
from trakstore.storage.group_documents import attributes
from trakstore.storage.layout import Epoch
from trakstore.storage.markers import marker_of
from trakstore.storage.masks import Masks, read_masks
from trakstore.storage.split import Split, split_spec
from trakstore.storage.stored import StoredColumn, read_together

__all__ = ["Opened", "is_current", "open_splits", "refuse_older"]


class Opened(Protocol):
    """What is needed to see whether a split is still as it was."""

    @property
    def location(self) -> Location: ...
    @property
    def epoch(self) -> Epoch: ...
    @property
    def name(self) -> str: ...
    @property
    def state(self) -> str: ...


def open_splits(location: Location, wanted: Sequence[tuple[Epoch, str]]) -> list[Split | None]:
    """Splits as they are now; None for those that are not there.

    Parameters
    ----------
    location : Location
    wanted : sequence of (epoch, name)

    Raises
    ------
    DamagedError
        When a document cannot be read.
    """
    paths = [layout.split_path(*one) for one in wanted]  # refuses what is no name
    names = sorted({name for _, name in wanted})
    calls: list[Callable[[], Any]] = [partial(read_masks, location, name) for name in names]
    calls += [partial(_read, location, *one) for one in wanted]
    calls += [partial(location.names, layout.written_path(path)) for path in paths]
    calls += [partial(_left_out, location, path) for path in paths]
    found, count = together(location, calls), len(wanted)
    masks = dict(zip(names, found[: len(names)], strict=True))
    rest = (found[len(names) + n * count :][:count] for n in range(3))
    opened = [
        None if what is None else _opened(location, one, what, written, left_out)
        for one, what, written, left_out in zip(wanted, *rest, strict=True)
    ]
    there = [one for one in opened if one is not None]
    with read_together(read for one in there for read in one.reads(masks[one.split.name])):
        return [None if one is None else one.settled(masks[one.split.name]) for one in opened]


def is_current(split: Opened) -> bool:
    """Whether a split still has the rows that it had when it was opened, and leaves out the same."""
    (now,) = open_splits(split.location, [(split.epoch, split.name)])
    return now is not None and now.state == split.state


def refuse_older(location: Location, path: str, spec: SplitSpec) -> None:
    """Raise a :class:`DamagedError` for a document from before an append that has ended.

    To be asked where there are rows behind the last: an append that was stopped leaves the same.
    """
    claim = last_claim(location, path)
    known = {} if claim is None else claim.known
    if known.get("nonce") != spec.nonce or known.get("rows", 0) <= spec.rows:
        return
    document = location.get(layout.document_key(path))
    if document is None or attributes(document, path).get("rows") == spec.rows:
        raise DamagedError(
            f"{location}: {path} says {spec.rows} rows, but {known['rows']} were stored: its document "
            f"is an older one; put the newer back from a copy"
        )


def _read(location: Location, epoch: Epoch, name: str) -> tuple[SplitSpec, bool] | None:
    """A split's spec, and whether its last block has more rows; None where there is no split."""
    path = layout.split_path(epoch, name)
    document = location.get(layout.document_key(path))
    if document is None:
        return None
    with error_context(str(location)):
        spec = split_spec(document, path)
    start, stop = spec.block_range(spec.blocks - 1)
    if stop - start == spec.block_rows:
        return spec, False
    with suppress(DamagedError):  # which is told when the block is read
        last = marker_of(location, path, spec, spec.blocks - 1, fresh=True)
        return spec, last.rows > stop - start
    return spec, False


@dataclass(frozen=True)
class _Found:
    """A split, and the blocks in which a column says that rows are left out.

    Attributes
    ----------
    split : Split
    old, bad : list of int
        Blocks of the ``masked`` column of format 1, and of rows that were bad when they were written.
    """

    split: Split
    old: list[int]
    bad: list[int]

    def reads(self, masks: Masks) -> Iterator[tuple[StoredColumn, int, int]]:
        """What :meth:`settled` reads."""
        if self._masked(masks) is None:
            yield from self._blocks(self.split.masked_before, self.old)
        yield from self._blocks(self.split.column("norm"), self.bad)

    def settled(self, masks: Masks) -> Split:
        """The split without the rows that are left out."""
        masked = self._masked(masks)
        if masked is None:
            masked = _where(np.asarray, self._blocks(self.split.masked_before, self.old))
        skipped = _where(np.isnan, self._blocks(self.split.column("norm"), self.bad))
        return replace(self.split, masked=np.union1d(masked, skipped), skipped=skipped)

    def _masked(self, masks: Masks) -> NDArray[np.int64] | None:
        return masks.positions(self.split.epoch, self.split.spec.nonce, self.split.rows)

    def _blocks(
        self, column: StoredColumn, blocks: list[int]
    ) -> Iterator[tuple[StoredColumn, int, int]]:
        spec = self.split.spec
        for block in blocks[: bisect_left(blocks, spec.blocks)]:
            yield column, *spec.block_range(block)


def _opened(
    location: Location,
    one: tuple[Epoch, str],
    what: tuple[SplitSpec, bool],
    names: list[str],
    left_out: tuple[list[int], list[int]],
) -> _Found:
    epoch, name, (spec, more) = layout.as_epoch(one[0]), one[1], what
    path, written = layout.split_path(epoch, name), _numbers(layout.marker_block, names)
    old, bad = left_out
    told = _numbers(layout.skipped_block, names) & written
    lost = sorted(block for block in told - set(bad) if block < spec.blocks)
    if lost:
        raise DamagedError(
            f"{location}: {path}/{layout.SKIPPED}/c/{lost[0]} was deleted: it says which rows are left "
            f"out, and why; put it back from a copy, or repair the store and featurize again"
        )
    if more or max(written, default=0) >= spec.blocks:
        refuse_older(location, path, spec)
    complete = all(block in written for block in range(spec.blocks))
    bad = [block for block in bad if block in written]  # its norms are NaN
    return _Found(Split(location, epoch, name, spec, complete), old, bad)


def _left_out(location: Location, path: str) -> tuple[list[int], list[int]]:
    """Blocks of the columns, there only where they say something, of masked and of bad rows."""
    there = location.names(path)
    old, bad = (
        _blocks_of(location, layout.child(path, name)) if name in there else []
        for name in (layout.MASKED, layout.SKIPPED)
    )
    return old, bad


def _numbers(block_of: Callable[[str], int | None], names: list[str]) -> set[int]:
    return {block for block in map(block_of, names) if block is not None}


def _blocks_of(location: Location, path: str) -> list[int]:
    names = location.names(f"{path}/c")
    return sorted(int(name) for name in names if name.isascii() and name.isdecimal())


def _where(
    left_out: Callable[[NDArray[Any]], NDArray[np.bool_]],
    reads: Iterator[tuple[StoredColumn, int, int]],
) -> NDArray[np.int64]:
    """Positions of the rows whose value says that they are left out."""
    found = [np.empty(0, dtype=np.int64)]
    for column, start, stop in reads:
        found.append(np.flatnonzero(left_out(column.read(start, stop))) + start)
    return np.concatenate(found)

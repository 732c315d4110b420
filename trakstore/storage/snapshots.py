"""Opening splits: document, commit records and what is left out, once, and all at once.

A query works on splits as they were when it opened them; whoever writes looks again.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import DamagedError, told_of
from trakstore.spec import SplitSpec
from trakstore.storage import layout
from trakstore.storage.backends.location import Location
from trakstore.storage.backends.together import together
from trakstore.storage.claims import last_claim
from trakstore.storage.layout import Epoch
from trakstore.storage.markers import marker_of
from trakstore.storage.masks import Masks, read_masks
from trakstore.storage.split import Split, attributes, split_spec, written_blocks
from trakstore.storage.stored import StoredColumn

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
    calls += [partial(written_blocks, location, path) for path in paths]
    calls += [partial(_blocks_of, location, f"{path}/{layout.MASKED}") for path in paths]
    calls += [partial(_blocks_of, location, f"{path}/{layout.SKIPPED}") for path in paths]
    found, count = together(location, calls), len(wanted)
    masks = dict(zip(names, found[: len(names)], strict=True))
    rest = (found[len(names) + n * count :][:count] for n in range(4))
    parts = zip(wanted, *rest, strict=True)
    return [what and _opened(location, one, masks[one[1]], *what, *of) for one, what, *of in parts]


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
    with told_of(str(location)):
        spec = split_spec(document, path)
    start, stop = spec.block_range(spec.blocks - 1)
    if stop - start == spec.block_rows:
        return spec, False
    with suppress(DamagedError):  # which is told when the block is read
        last = marker_of(location, path, spec, spec.blocks - 1, fresh=True)
        return spec, last.rows > stop - start
    return spec, False


def _opened(
    location: Location,
    one: tuple[Epoch, str],
    masks: Masks,
    spec: SplitSpec,
    more: bool,
    written: set[int],
    old_blocks: list[int],
    bad_blocks: list[int],
) -> Split:
    epoch, name = layout.as_epoch(one[0]), one[1]
    if more or max(written, default=0) >= spec.blocks:
        refuse_older(location, layout.split_path(epoch, name), spec)
    complete = all(block in written for block in range(spec.blocks))
    masked = masks.positions(epoch, spec.nonce, spec.rows)
    split = Split(location, epoch, name, spec, complete)
    masked = _old_mask(split, old_blocks) if masked is None else masked
    skipped = _skipped(split, [block for block in bad_blocks if block in written])
    return replace(split, masked=np.union1d(masked, skipped), skipped=skipped)


def _blocks_of(location: Location, path: str) -> list[int]:
    """Blocks that have a chunk of a column that is there only where it says something."""
    names = location.names(f"{path}/c")
    return sorted(int(name) for name in names if name.isascii() and name.isdecimal())


def _skipped(split: Split, blocks: list[int]) -> NDArray[np.int64]:
    """Rows that were bad when they were written: their norm is NaN, and their block says why."""
    found = [np.empty(0, dtype=np.int64)]
    for block in blocks[: bisect_left(blocks, split.spec.blocks)]:
        start, stop = split.spec.block_range(block)
        found.append(np.flatnonzero(np.isnan(split.column("norm").read(start, stop))) + start)
    return np.concatenate(found)


def _old_mask(split: Split, blocks: list[int]) -> NDArray[np.int64]:
    """Rows that the ``masked`` column of format 1 leaves out."""
    spec, found = split.spec, [np.empty(0, dtype=np.int64)]
    column = StoredColumn(
        split.location,
        f"{split.path}/{layout.MASKED}",
        (spec.rows,),
        np.dtype(bool),
        (spec.block_rows,),
        "masked",
    )
    for block in blocks[: bisect_left(blocks, spec.blocks)]:
        start, stop = spec.block_range(block)
        found.append(np.flatnonzero(column.read(start, stop)) + start)
    return np.concatenate(found)

"""Snapshots of splits: document, commit records and rows left out, read once and together.

A query uses splits as they were when it opened them; a writer reads them again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import DamagedError, error_context
from trakstore.spec import SplitSpec
from trakstore.storage import layout
from trakstore.storage.backends.location import Location
from trakstore.storage.backends.together import together
from trakstore.storage.claims import last_claim
from trakstore.storage.dropped_rows import DroppedRows, read_dropped
from trakstore.storage.group_documents import attributes
from trakstore.storage.layout import Epoch
from trakstore.storage.markers import marker_of
from trakstore.storage.masks import Masks, read_masks
from trakstore.storage.numbered import numbers_among
from trakstore.storage.split import Split, blocks_among, split_spec
from trakstore.storage.stored import StoredColumn, read_together


def open_splits(location: Location, wanted: Sequence[tuple[Epoch, str]]) -> list[Split | None]:
    """Open splits as they are now; None for those that do not exist.

    Parameters
    ----------
    location : Location
    wanted : sequence of (epoch, name)

    Raises
    ------
    DamagedError
        When a document cannot be read.
    """
    paths = [layout.split_path(*one) for one in wanted]  # raises for bad names
    names = sorted({name for _, name in wanted})
    calls: list[Callable[[], Any]] = [partial(read_masks, location, name) for name in names]
    for read in (_read_spec, _list_markers, _list_left_out, _read_note):
        calls += [partial(read, location, path) for path in paths]
    results = iter(together(location, calls))
    masks = {name: next(results) for name in names}
    specs, markers, left_out, notes = ([next(results) for _ in paths] for _ in range(4))
    opened = [
        None if spec is None else _opened(location, *one, *spec, *listed)
        for one, spec, *listed in zip(wanted, specs, markers, left_out, notes, strict=True)
    ]
    for one in opened:
        if one is not None:
            one.apply(masks[one.split.name])
    with read_together(read for one in opened if one is not None for read in (*one.old, *one.bad)):
        return [None if one is None else one.without_rows() for one in opened]


def is_current(location: Location, epoch: Epoch, name: str, state: str) -> bool:
    """Tell whether a split still has the rows of a state, and leaves out the same ones."""
    (now,) = open_splits(location, [(epoch, name)])
    return now is not None and now.state == state


def refuse_older(location: Location, path: str, spec: SplitSpec) -> None:
    """Raise a :class:`DamagedError` for a document from before an append that has ended.

    This is called if there are rows after the last, which a stopped append leaves too. The claim of an
    append that ended tells the two apart, since it records the number of stored rows.
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


def _read_spec(location: Location, path: str) -> tuple[SplitSpec, bool] | None:
    """Read a split's spec, and whether its last block has more rows; None if there is no split."""
    document = location.get(layout.document_key(path))
    if document is None:
        return None
    with error_context(str(location)):
        spec = split_spec(document, path)
    start, stop = spec.block_range(spec.blocks - 1)
    with suppress(DamagedError):  # reported when the block is read
        if stop - start < spec.block_rows:
            last = marker_of(location, path, spec, spec.blocks - 1, fresh=True)
            return spec, last.rows > stop - start
    return spec, False


def _read_note(location: Location, path: str) -> DroppedRows | DamagedError | None:
    """Read the note that a split's features were deleted; only a split of drawn labels can have one.

    The error of a damaged note is returned, not raised: it concerns those who need the rows, or what is
    made from them, but not those who look at the split, or drop it.
    """
    try:
        return read_dropped(location, path) if path.endswith(layout.SAMPLED) else None
    except DamagedError as error:
        return error


def _list_markers(location: Location, path: str) -> list[str]:
    return location.names(layout.written_path(path))


def _list_left_out(location: Location, path: str) -> tuple[list[int], list[int]]:
    """List the blocks with columns of masked and of bad rows, which exist only where needed."""
    there = location.names(path)
    old, bad = (
        numbers_among(location.names(layout.chunk_folder(layout.child(path, name))))
        if name in there
        else []
        for name in (layout.MASKED, layout.SKIPPED)
    )
    return old, bad


_Read: TypeAlias = tuple[StoredColumn, int, int]  # rows start..stop of a column


@dataclass
class _Opened:
    """A split whose left-out rows are still to be read.

    Attributes
    ----------
    split : Split
    old : list
        Reads of the ``masked`` column of format 1, which counts if no mask names the split.
    bad : list
        Reads of the norms of blocks with rows that were bad when they were written, which are NaN.
    masked : ndarray, optional
        Rows that a mask leaves out.
    """

    split: Split
    old: list[_Read]
    bad: list[_Read]
    masked: NDArray[np.int64] | None = None

    def apply(self, masks: Masks) -> None:
        """Apply a mask in place of the column of format 1."""
        split = self.split
        self.masked = masks.positions(split.epoch, split.spec.nonce, split.rows)
        if self.masked is not None:
            self.old = []

    def without_rows(self) -> Split:
        """Return the split, with the rows that are left out."""
        masked = _where(np.asarray, self.old) if self.masked is None else self.masked
        skipped = _where(np.isnan, self.bad)
        return replace(self.split, masked=np.union1d(masked, skipped), skipped=skipped)


def _opened(
    location: Location,
    epoch: Epoch,
    name: str,
    spec: SplitSpec,
    more: bool,
    names: list[str],
    left_out: tuple[list[int], list[int]],
    note: DroppedRows | DamagedError | None,
) -> _Opened:
    path, written = layout.split_path(epoch, name), set(blocks_among(names))
    old, bad = left_out
    # A committed block with such a key has a chunk of reasons. Without the chunk, the rows' NaN would
    # look like damage, or like numbers.
    noted = {block for one in names if (block := layout.skipped_block(one)) is not None}
    lost = sorted(block for block in noted & written - set(bad) if block < spec.blocks)
    if lost:
        key = layout.chunk_key(layout.child(path, layout.SKIPPED), (lost[0],))
        raise DamagedError(
            f"{location}: {key} was deleted: it says which rows are left out, and why; put it back "
            f"from a copy, or repair the store and featurize again"
        )
    if more or max(written, default=0) >= spec.blocks:
        refuse_older(location, path, spec)
    complete = written.issuperset(range(spec.blocks))
    split = Split(
        location,
        layout.as_epoch(epoch),
        name,
        spec,
        complete,
        dropped=isinstance(note, DroppedRows) and note.is_of(spec),
        damaged_note=str(note) if isinstance(note, DamagedError) else "",
    )
    bad = [block for block in bad if block in written]  # others have no norms yet
    return _Opened(
        split, _reads(split.masked_before, spec, old), _reads(split.column("norm"), spec, bad)
    )


def _reads(column: StoredColumn, spec: SplitSpec, blocks: list[int]) -> list[_Read]:
    return [(column, *spec.block_range(block)) for block in blocks if block < spec.blocks]


def _where(
    left_out: Callable[[NDArray[Any]], NDArray[np.bool_]], reads: list[_Read]
) -> NDArray[np.int64]:
    """Return the positions of rows whose value says that they are left out."""
    parts = [np.empty(0, dtype=np.int64)]
    for column, start, stop in reads:
        parts.append(np.flatnonzero(left_out(column.read(start, stop))) + start)
    return np.concatenate(parts)

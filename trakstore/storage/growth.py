"""Changes of a written store: rows are appended, left out, or dropped.

Readers may continue meanwhile. Any number of processes may leave rows out at once; of those that append
to one split, or drop it, all but the first are refused.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import NotFoundError, SpecMismatchError, TrakStoreError, error_context
from trakstore.quantities import as_flag
from trakstore.storage import layout
from trakstore.storage.arrays import array_documents, row_document
from trakstore.storage.claims import claimed
from trakstore.storage.completion import forget_complete, note_complete
from trakstore.storage.dropped_rows import forget_dropped
from trakstore.storage.ids import as_ids
from trakstore.storage.masks import MaskEntry, Masks, change_masks
from trakstore.storage.snapshots import open_splits
from trakstore.storage.split import Split, split_document, written_blocks
from trakstore.storage.writer import BlockWriter

Columns = Mapping[str, NDArray[Any]]


def append_rows(
    split: Split,
    rows: int,
    columns: Callable[[int, int], Columns],
    *,
    dataset: str | None = None,
) -> Split:
    """Add rows behind the last of a complete split.

    The last block, if it is not full, is written again, with its old rows byte for byte. New rows count
    from the moment that the split's own document is replaced, which is the last step; the same call
    repeats an append that stopped before that.

    Parameters
    ----------
    split : Split
        Complete.
    rows : int
        Number of the new rows.
    columns : callable
        ``columns(start, stop)`` returns all columns of the new rows start to stop, counted from the
        split's first row.
    dataset : str, optional
        Fingerprint of the longer data set.

    Raises
    ------
    IncompleteError
        When rows of the split are missing, or were dropped.
    """
    place, path = split.location, split.path
    with claimed(place, path, "append") as done:
        # The split is opened again under the claim: another append may have ended since the caller
        # opened it.
        old = _as_it_is(split)
        old.require_complete()
        old.require_rows()
        spec = replace(old.spec, rows=old.rows + rows, dataset=dataset, given=None)
        grown = replace(old, spec=spec)
        writer = BlockWriter(grown)
        for block in range(old.rows // old.spec.block_rows, spec.blocks):
            start, stop = spec.block_range(block)
            # A kill from here on leaves a last block, and markers, with more rows than the split says.
            # Readers leave the extra rows out, and the same append starts over from here.
            fresh = columns(max(start, old.rows), stop)
            writer.write(block, _after_old(old, start, fresh))
        documents = array_documents(spec).items()
        place.put({layout.document_key(path, name): one for name, one in documents})
        for name in (layout.MASKED, layout.SKIPPED):
            key = layout.document_key(layout.child(path, name))
            if place.get(key) is not None:
                place.put({key: row_document(spec, name)})
        # The commit: from here on the rows count.
        place.put({layout.document_key(path): split_document(path, spec)})
        noted = spec.rows if note_complete(grown) else 0
        done.update(nonce=spec.nonce, rows=spec.rows, noted=noted)
    return grown


def _as_it_is(split: Split) -> Split:
    """Open the present split, which must be unchanged."""
    (now,) = open_splits(split.location, [(split.epoch, split.name)])
    if now is None or (now.spec, now.spec.nonce) != (split.spec, split.spec.nonce):
        raise SpecMismatchError(
            f"{split.name} at epoch {split.epoch} was changed by another process since it was opened; "
            f"look at it and try again"
        )
    return now


def _after_old(split: Split, start: int, fresh: Columns) -> Columns:
    if start >= split.rows:
        return fresh
    # The old rows are decoded and encoded again, byte for byte: columns are stored as they are read.
    stored = split.column_as_stored
    old = {name: stored(name).read(start, split.rows) for name in split.columns}
    both = {name: np.concatenate([old[name], fresh[name]]) for name in split.columns}
    bad, count = split.skipped >= start, split.rows - start
    if bad.any() or layout.SKIPPED in fresh:
        none = np.zeros(len(both["norm"]), dtype=np.uint8)
        reasons = split.reasons.read(start, split.rows) if bad.any() else none[:count]
        both[layout.SKIPPED] = np.append(reasons, fresh.get(layout.SKIPPED, none[count:]))
    return both


def mask_samples(
    splits: Sequence[Split],
    ids: Sequence[int] | Sequence[str] | NDArray[Any],
    *,
    masked: bool = True,
) -> int:
    """Leave samples out of everything that is asked from now on, or take them in again.

    Masking is not deletion: the rows stay on the disk. At all epochs or at none; of what others leave
    out at the same time nothing is lost.

    Parameters
    ----------
    splits : sequence of Split
        One split at several epochs.
    ids : sequence of int or str
        Sample ids.
    masked : bool
        False takes the samples in again.

    Returns
    -------
    int
        Number of rows whose state changed.

    Raises
    ------
    NotFoundError
        When a split has no such sample; nothing is changed then.
    TrakStoreError
        When ``masked`` is not a boolean, or a row is to be taken in again that was bad when it was
        written.
    """
    masked = as_flag(masked, "masked")
    wanted, changed = np.unique(as_ids(ids)), 0
    rows = [_positions(split, wanted) for split in splits]
    if not masked:
        for split, positions in zip(splits, rows, strict=True):
            _refuse_bad(split, positions)

    # Called again, on what others made of the masks meanwhile, until it is published on top of that.
    def change(now: Masks) -> dict[str, MaskEntry] | None:
        nonlocal changed
        entries, changed = {}, 0
        for split, positions in zip(splits, rows, strict=True):
            epoch, nonce = layout.epoch_path(split.epoch), split.spec.nonce
            there = now.entries.get(epoch)
            if there is None or there.nonce != nonce:
                # Rows that format 1 left out by a column; bad rows are left out by their own.
                own = np.setdiff1d(split.masked, split.skipped)
                there = MaskEntry.of(nonce, split.rows, own)
            with error_context(now.place):
                entry, count = there.altered(positions, masked, split.rows)
            if count:
                changed += count
                entries[epoch] = entry
        return entries or None

    change_masks(splits[0].location, splits[0].name, change)
    return changed


def _refuse_bad(split: Split, rows: NDArray[np.int64]) -> None:
    bad = np.intersect1d(rows, split.skipped)
    if len(bad):
        raise TrakStoreError(
            f"{split.name} at epoch {split.epoch}: row {bad[0]} was bad when it was written, so that "
            f"it has no features: only featurizing it again would take it in"
        )


def _positions(split: Split, wanted: NDArray[Any]) -> NDArray[np.int64]:
    column, parts, known = split.column(layout.SAMPLE_ID), [], 0
    if column.dtype.kind == "T":
        wanted = wanted.astype(column.dtype)
    elif wanted.dtype.kind == "T":
        raise NotFoundError(
            f"{split.name} at epoch {split.epoch} has ids that are integers, got strings "
            f"{wanted[:5].tolist()}; nothing masked"
        )
    for block in range(split.spec.blocks):
        start, stop = split.spec.block_range(block)
        here = np.flatnonzero(np.isin(column.read(start, stop), wanted))
        parts.append(here + start)
        known += len(here)
    positions = np.concatenate(parts)
    if known < len(wanted):
        names = [column.read(int(p), int(p) + 1)[0] for p in positions]
        unknown = [one for one in wanted.tolist() if one not in set(names)]
        raise NotFoundError(
            f"{split.name} at epoch {split.epoch} has no samples {unknown[:5]}"
            f"{' ...' if len(unknown) > 5 else ''} ({len(unknown)} of {len(wanted)}); nothing masked"
        )
    return positions


def give_again(split: Split, given: str | None) -> None:
    """Go on with other values where an incomplete split was to have some.

    A process that still writes those is stopped; the blocks that are there have to be compared
    afterwards.
    """
    place, path = split.location, split.path
    with claimed(place, path, "write"):
        now = _as_it_is(split)
        place.put({layout.document_key(path): split_document(path, replace(now.spec, given=given))})


def drop_split(split: Split) -> None:
    """Delete a split at an epoch, so that no half of it is ever taken for it.

    A new nonce comes first: it stops a process that still writes the split, and no marker counts. The
    group's document goes last but for the folder itself, and takes with it what such writers left;
    until then a drop that was stopped is finished by the same call.
    """
    place, path = split.location, split.path
    with claimed(place, path, "drop"):
        # A writer of this split looks at the nonce before its marker: it stops, or its marker is stale.
        ended = replace(split.spec, nonce=secrets.randbits(32))
        place.put({layout.document_key(path): split_document(path, ended)})
        blocks = written_blocks(place, path)
        place.delete([layout.marker_key(path, block) for block in blocks])
        for name in (*split.columns, layout.MASKED, layout.SKIPPED, layout.WRITTEN):
            place.delete_folder(layout.child(path, name))
        forget_complete(split)
        forget_dropped(place, path)
        place.delete([layout.document_key(path)])
        place.delete_folder(path)


def sweep_stale_markers(split: Split) -> None:
    """Delete markers of a split of the same name that was dropped while it was being written."""
    place, path = split.location, split.path
    # A writer that was slow may have committed a block after the drop had listed the markers. Its nonce
    # is the old split's, so that no reader takes it, but to this split's writers it would be committed.
    stale = [
        block
        for block in written_blocks(place, path)
        if BlockWriter(split).marker_nonce(block) != split.spec.nonce
    ]
    place.delete([layout.marker_key(path, block) for block in stale])

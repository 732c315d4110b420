"""Changes of a written store: rows are appended, left out, or dropped.

Readers may continue meanwhile. Any number of processes may leave rows out at once; of those that append
to one split, or drop it, all but the first are refused.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import (
    LocationError,
    NotFoundError,
    SpecMismatchError,
    TrakStoreError,
    error_context,
)
from trakstore.quantities import as_flag
from trakstore.spec import Doubt, SplitSpec
from trakstore.storage import layout
from trakstore.storage.arrays import array_documents, row_document
from trakstore.storage.backends.location import Location
from trakstore.storage.claims import claimed
from trakstore.storage.completion import forget_complete, note_complete
from trakstore.storage.dropped_rows import forget_dropped
from trakstore.storage.ids import as_ids
from trakstore.storage.masks import MaskEntry, Masks, change_masks, read_masks
from trakstore.storage.snapshots import open_splits
from trakstore.storage.split import Split, split_document, written_blocks
from trakstore.storage.writer import BlockWriter, WithdrawnError

Columns = Mapping[str, NDArray[Any]]

_WAITS = (0.1, 0.2, 0.5, 1.0, 2.0)  # seconds, for another process that changes the split


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
        # The commit: from here on the rows count.
        _put_documents(place, path, spec)
        noted = spec.rows if note_complete(grown) else 0
        done.update(nonce=spec.nonce, rows=spec.rows, noted=noted)
    return grown


def _put_documents(place: Location, path: str, spec: SplitSpec) -> None:
    """Replace the documents of a split: those of the arrays, which may be longer, then its own."""
    documents = array_documents(spec).items()
    place.put({layout.document_key(path, name): one for name, one in documents})
    for name in (layout.MASKED, layout.SKIPPED):
        key = layout.document_key(layout.child(path, name))
        if place.get(key) is not None:
            place.put({key: row_document(spec, name)})
    place.put({layout.document_key(path): split_document(path, spec)})


def withdraw_rows(split: Split, doubt: Doubt, spec: SplitSpec | None = None) -> Split:
    """Withdraw all rows of a split at once, whoever wrote them, since a block of it was wrong.

    From the moment that the split's document has the nonce of :meth:`SplitSpec.withdrawn`, no marker of
    before commits a row, neither one that a killed run left nor one that a slow worker still writes:
    every worker that opens the split, or goes on with it, finds its rows missing, and that they are
    doubted. Masks stay; stored grams and indexes are of other rows from then on.

    Parameters
    ----------
    split : Split
        As it was when its rows began to be written.
    doubt : {"padding", "engine"}
        Reason of it.
    spec : SplitSpec, optional
        Spec of the split with more rows, where some were to be appended.

    Returns
    -------
    Split
        The split without rows, as it is then: others may have doubted it more.

    Raises
    ------
    LocationError
        When another process changes the split, or the store cannot be written.
    SpecMismatchError
        When the split was dropped or replaced meanwhile.
    """
    place, path = split.location, split.path
    made = replace(split, spec=(spec or split.spec).withdrawn(doubt), complete=False)
    writer = BlockWriter(split)
    for wait in (*_WAITS, None):
        try:
            writer.refuse_replaced()
            with claimed(place, path, "withdraw") as done:
                # A drop, or another worker, may have come first.
                writer.refuse_replaced()
                _put_documents(place, path, made.spec)
                done.update(nonce=made.spec.nonce, rows=made.rows, noted=0)
            break
        except WithdrawnError:  # by another worker
            now = writer.doubt()
            split = replace(split, spec=split.spec.withdrawn(now))
            made, writer = replace(made, spec=made.spec.withdrawn(now)), BlockWriter(split)
            if now == made.spec.doubted:
                break
        except LocationError as error:
            if wait is None:
                raise LocationError(
                    f"a block of {split.name} at epoch {split.epoch} was wrong, so that others may be, "
                    f"and they could not be withdrawn ({error}): run the same command again, or drop "
                    f"the split (store.drop) and featurize it again"
                ) from error
            time.sleep(wait)
    finish_withdrawal(made)
    return made


def finish_withdrawal(split: Split) -> None:
    """Delete the markers of rows that were withdrawn, and leave the same rows out as before."""
    BlockWriter(split).sweep()
    epoch = layout.epoch_path(split.epoch)

    def change(now: Masks) -> dict[str, MaskEntry] | None:
        there = now.entries.get(epoch)
        if there is None or there.nonce not in split.spec.nonces_before:
            return None
        return {epoch: replace(there, nonce=split.spec.nonce)}

    if read_masks(split.location, split.name).entries:
        change_masks(split.location, split.name, change)


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

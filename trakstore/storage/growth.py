"""How a store changes after it was written: rows are appended, left out, dropped.

All of these are for a single writer; readers may go on meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from trakstore.errors import NotFoundError, TrakStoreError
from trakstore.storage import layout
from trakstore.storage.arrays import StrictStore, array_documents, mask_document, skipped_document
from trakstore.storage.ids import as_ids
from trakstore.storage.splits import Split, group_document, written_blocks
from trakstore.storage.writer import BlockWriter

__all__ = ["append_rows", "drop_split", "mask_rows", "sweep_stale_markers"]

Columns = Mapping[str, NDArray[Any]]


def append_rows(
    split: Split,
    rows: int,
    columns: Callable[[int, int], Columns],
    *,
    dataset: str | None = None,
) -> Split:
    """Add rows behind the last of a complete split.

    The last block, where it is not full, is written again with its old rows byte for byte. New rows
    count from the moment that the split's own document is replaced, which comes last; an append
    that was stopped before is done again by the same call.

    Parameters
    ----------
    split : Split
        Complete.
    rows : int
        How many.
    columns : callable
        ``columns(start, stop)`` gives all columns of the new rows start to stop, counted from the
        split's first row.
    dataset : str, optional
        Fingerprint of the longer data set.

    Raises
    ------
    IncompleteError
        When rows of the split are missing.
    """
    split.require_complete()
    place, path = split.location, split.path
    grown = replace(split, spec=replace(split.spec, rows=split.rows + rows, dataset=dataset))
    writer = BlockWriter(grown)
    for block in range(split.rows // split.spec.block_rows, grown.spec.blocks):
        start, stop = grown.spec.block_range(block)
        fresh = columns(max(start, split.rows), stop)
        writer.write(block, _after_old(split, start, fresh))
    place.put(
        {layout.document_key(f"{path}/{n}"): d for n, d in array_documents(grown.spec).items()}
    )
    for name, document in ((layout.MASKED, mask_document), (layout.SKIPPED, skipped_document)):
        key = layout.document_key(f"{path}/{name}")
        if place.get(key) is not None:
            place.put({key: document(grown.spec)})
    place.put({layout.document_key(path): group_document(grown.spec.to_dict())})
    return grown


def _after_old(split: Split, start: int, fresh: Columns) -> Columns:
    if start >= split.rows:
        return fresh
    old = {name: split.column(name).read(start, split.rows) for name in split.columns}
    both = {name: np.concatenate([old[name], fresh[name]]) for name in split.columns}
    bad, count = split.skipped >= start, split.rows - start
    if bad.any() or layout.SKIPPED in fresh:
        none = np.zeros(len(both["norm"]), dtype=np.uint8)
        reasons = split.reasons.read(start, split.rows) if bad.any() else none[:count]
        both[layout.SKIPPED] = np.append(reasons, fresh.get(layout.SKIPPED, none[count:]))
    return both


def mask_rows(
    split: Split, ids: Sequence[int] | Sequence[str] | NDArray[Any], *, masked: bool = True
) -> int:
    """Leave rows out of everything that is asked from now on, or take them in again.

    Masking is not deletion: the rows stay on the disk.

    Parameters
    ----------
    split : Split
    ids : sequence of int or str
        Sample ids.
    masked : bool
        False takes the rows in again.

    Returns
    -------
    int
        Number of rows whose state changed.

    Raises
    ------
    NotFoundError
        When the split has no such sample; nothing is changed then.
    TrakStoreError
        When a row is to be taken in again that was bad when it was written.
    """
    found = _positions(split, np.unique(as_ids(ids)))
    bad = np.intersect1d(found, split.skipped)
    if len(bad) and not masked:
        raise TrakStoreError(
            f"{split.name} at epoch {split.epoch}: row {bad[0]} was bad when it was written, so that "
            f"it has no features: only featurizing it again would take it in"
        )
    place, path = split.location, f"{split.path}/{layout.MASKED}"
    place.put_if_absent(_mask_key(split), mask_document(split.spec))
    store = StrictStore(place.store, mask_document(split.spec), sparse=True)
    array = zarr.open_array(
        store, path=path, mode="r+", zarr_format=3, config={"write_empty_chunks": True}
    )
    changed = 0
    for block in np.unique(found // split.spec.block_rows):
        start, stop = split.spec.block_range(int(block))
        state = np.array(array[start:stop], dtype=bool)
        here = found[(found >= start) & (found < stop)] - start
        changed += int((state[here] != masked).sum())
        state[here] = masked
        array[start:stop] = state
    return changed


def _positions(split: Split, wanted: NDArray[Any]) -> NDArray[np.int64]:
    column, found, known = split.column(layout.SAMPLE_ID), [], 0
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
        found.append(here + start)
        known += len(here)
    positions = np.concatenate(found)
    if known < len(wanted):
        names = [column.read(int(p), int(p) + 1)[0] for p in positions]
        unknown = [one for one in wanted.tolist() if one not in set(names)]
        raise NotFoundError(
            f"{split.name} at epoch {split.epoch} has no samples {unknown[:5]}"
            f"{' ...' if len(unknown) > 5 else ''} ({len(unknown)} of {len(wanted)}); nothing masked"
        )
    return positions


def drop_split(split: Split) -> None:
    """Delete a split at an epoch: its markers first, so that no half of it is ever taken for it.

    The group's document goes last but for the folder itself; until then a drop that was stopped is
    finished by the same call.
    """
    place, path = split.location, split.path
    blocks = written_blocks(place, path)
    place.delete([layout.marker_key(path, block) for block in sorted(blocks)])
    for name in (*split.columns, layout.MASKED, layout.SKIPPED, layout.WRITTEN):
        place.delete_folder(f"{path}/{name}")
    place.delete([layout.document_key(path)])
    place.delete_folder(path)


def sweep_stale_markers(split: Split) -> None:
    """Delete markers of a split of the same name that was dropped while it was being written."""
    place, path = split.location, split.path
    stale = [
        block
        for block in written_blocks(place, path)
        if BlockWriter(split).marker_nonce(block) != split.spec.nonce
    ]
    place.delete([layout.marker_key(path, block) for block in stale])


def _mask_key(split: Split) -> str:
    return layout.document_key(f"{split.path}/{layout.MASKED}")

"""Verification of a store: every byte is as it was written, and in its place.

Documents are compared with the function that makes them, chunks with their own checksum and with the
marker that commits their block, rows with their stored norm. Blocks that were never committed are
missing, not wrong.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from trakstore.errors import DamagedError
from trakstore.planning import ranges
from trakstore.progress import ProgressLine
from trakstore.quantities import as_flag, as_whole
from trakstore.storage import layout
from trakstore.storage.backends.location import Where
from trakstore.storage.block_checks import Finding, check_block
from trakstore.storage.checking.dropped_splits import check_dropped, check_grams, finish_dropping
from trakstore.storage.checking.repeated_ids import repeated_ids
from trakstore.storage.checking.statements import (
    check_claims,
    check_completions,
    check_masks,
    deleted_markers,
)
from trakstore.storage.checking.walk import Walk, require
from trakstore.storage.claims import claimed
from trakstore.storage.completion import forget_complete
from trakstore.storage.layout import Epoch
from trakstore.storage.opening import location_of
from trakstore.storage.selections import as_epochs, as_splits
from trakstore.storage.split import Split
from trakstore.storage.store import FeatureStore


@dataclass(frozen=True)
class SplitReport:
    """Counts of a verified split: its blocks, the committed ones, and the bad ones.

    If its features were ``dropped``, only the other columns were read.
    """

    epoch: Epoch
    split: str
    blocks: int
    written_blocks: int
    bad_blocks: int
    dropped: bool = False


@dataclass(frozen=True)
class VerifyReport:
    """Findings of :func:`verify_store`.

    Attributes
    ----------
    location : str
        The store.
    splits : tuple of SplitReport
        Splits that were checked.
    findings : tuple of Finding
        Everything that is wrong, repaired or not.
    leftovers : tuple of str
        Temporary files of writers that were killed or are still running, and claims of killed
        processes; all are harmless.
    """

    location: str
    splits: tuple[SplitReport, ...]
    findings: tuple[Finding, ...]
    leftovers: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """True if nothing is wrong."""
        return not self.findings

    def to_dict(self) -> dict[str, Any]:
        """Return a dict for JSON."""
        return {"ok": self.ok, **asdict(self)}


def verify_store(
    store: Where | FeatureStore,
    *,
    epochs: Epoch | Sequence[Epoch] | None = None,
    splits: str | Sequence[str] | None = None,
    repair: bool = False,
    workers: int | None = None,
    progress: bool = False,
) -> VerifyReport:
    """Read a store and report everything that is not as it was written.

    Parameters
    ----------
    store : FeatureStore or its place
        Store to read.
    epochs, splits : one or a sequence, optional
        Epochs and splits to check; otherwise everything, saved scores included.
    repair : bool
        Whether to delete the markers of bad blocks, so that the next featurize (or ``write_split``)
        writes these again; drop bad grams, except those whose rows were dropped; rewrite documents that
        follow from others; finish a stopped drop of rows, or take it back if the gram has changed; end
        claims of killed processes; and remove leftovers of killed writers and stopped appends that are
        older than an hour. Sound chunks, and files that are not the store's, are left alone.
    workers : int, optional
        Threads; each holds one chunk at a time. By default four more than there are CPUs.
    progress : bool
        Show progress on standard error.

    Returns
    -------
    VerifyReport
        Report with the findings; ``ok`` if there are none.

    Raises
    ------
    LocationError
        When there is no store, or it cannot be read; with ``repair`` also when another process is
        appending to, dropping or repairing a split.
    SpecMismatchError
        When a newer trakstore wrote the store.
    NotFoundError
        When a named epoch or split does not exist.

    Examples
    --------
    >>> ts.verify_store(store, workers=1).ok
    True
    """
    repair, progress = as_flag(repair, "repair"), as_flag(progress, "progress")
    epochs = None if epochs is None else as_epochs(epochs)
    splits = None if splits is None else as_splits(splits)
    location = location_of(store)
    threads = (os.cpu_count() or 1) + 4 if workers is None else as_whole(workers, "workers", 1)
    walk = Walk(location, repair)
    reports = _walked(walk, epochs, splits, threads, progress)
    if not repair:
        _look_again(walk, epochs, splits)
    walk.clear_leftovers()
    return VerifyReport(str(location), reports, tuple(walk.findings), tuple(walk.leftovers))


def _walked(
    walk: Walk,
    epochs: Sequence[Epoch] | None,
    splits: Sequence[str] | None,
    threads: int,
    progress: bool,
) -> tuple[SplitReport, ...]:
    # Splits are opened before blocks are read, and statements about them come last: what is said of a
    # split can be compared with what it was found to be.
    walk.root()
    opened = [one for epoch in walk.epochs(epochs) for one in walk.splits_of(epoch, splits)]
    require(splits, sorted(walk.split_names), "split", walk.location)
    rows = sum(
        min(split.rows, len(walk.written(split)) * split.spec.block_rows) for split in opened
    )
    total, all_rows = sum(s.rows * s.row_bytes for s in opened), sum(s.rows for s in opened)
    with (
        ThreadPoolExecutor(threads) as pool,
        ProgressLine(
            f"verify {walk.location}", rows, item_bytes=total // max(1, all_rows), show=progress
        ) as line,
    ):
        reports = tuple(_check_alone(walk, split, pool, threads, line) for split in opened)
    if epochs is None and splits is None:
        walk.saved()
        check_grams(walk)
        check_masks(walk)
        check_completions(walk)
        check_dropped(walk)
        check_claims(walk)
        walk.runs()
    return reports


def _look_again(walk: Walk, epochs: Sequence[Epoch] | None, splits: Sequence[str] | None) -> None:
    """Forget the documents that another look finds right: a writer was between two that go together."""
    if all(one.kind != "document" for one in walk.findings):
        return
    again = Walk(walk.location, False, blocks=False)
    _walked(again, epochs, splits, 1, False)
    wrong = {(one.kind, one.key) for one in again.findings}
    walk.findings = [
        one for one in walk.findings if one.kind != "document" or (one.kind, one.key) in wrong
    ]


def _check_alone(
    walk: Walk, split: Split, pool: ThreadPoolExecutor, threads: int, line: ProgressLine
) -> SplitReport:
    """Check a split; for repair under a claim, so that nobody appends to it or drops it meanwhile."""
    if not walk.repair:
        return _check_split(walk, split, pool, threads, line)
    with claimed(split.location, split.path, "repair"):
        # Before the claim was taken the split may have grown, or been dropped.
        now = walk.opened(split.epoch, split.name, alone=True)
        if now is None:
            return SplitReport(split.epoch, split.name, 0, 0, 0)
        return _check_split(walk, finish_dropping(walk, now), pool, threads, line)


def _check_split(
    walk: Walk, split: Split, pool: ThreadPoolExecutor, threads: int, line: ProgressLine
) -> SplitReport:
    written = walk.written(split)
    walk.keys(split, any_written=bool(written))
    walk.left_out(split, layout.MASKED, "mask its samples again")
    walk.left_out(split, layout.SKIPPED, "nothing tells any more why rows are left out")
    deleted_markers(walk, split, written)
    inside = [block for block in written if block < split.spec.blocks]
    for block in written[len(inside) :]:
        key = layout.marker_key(split.path, block)
        what = "is of a block that the split does not have: an append was stopped (append again)"
        stray = Finding("marker", key, what, split.epoch, split.name, block)
        _bad_block(walk, split, block, [stray], only_if_old=True)
    bad, sound = 0, list[int]()
    for first, last in ranges(len(inside) if walk.blocks else 0, 8 * threads):
        some = inside[first:last]
        checked = pool.map(_twice_checked, itertools.repeat(split), some)
        for block, wrong in zip(some, checked, strict=True):
            start, stop = split.spec.block_range(block)
            line.advance(stop - start)
            if wrong:
                bad += 1
                _bad_block(walk, split, block, wrong)
            else:
                sound.append(block)
    _check_ids(walk, split, sound)
    counts = (split.spec.blocks, len(inside), bad)
    return SplitReport(split.epoch, split.name, *counts, split.dropped)


def _check_ids(walk: Walk, split: Split, blocks: Sequence[int]) -> None:
    """Find samples that have several rows in sound blocks."""
    # If a writer is replacing the split, chunks disagree with the older markers. Then ids cannot be
    # compared, and faults of chunks were reported with their blocks.
    with suppress(DamagedError):
        repeated = repeated_ids(split, blocks)
        if repeated is not None:
            what = f"names several rows of the split alike: {repeated}"
            key = layout.child(split.path, layout.SAMPLE_ID)
            walk.say("ids", key, what, epoch=split.epoch, split=split.name)


def _twice_checked(split: Split, block: int) -> list[Finding]:
    """Return the faults of a block that remain in a second check: it may just have been written."""
    return check_block(split, block) and check_block(split, block)


def _bad_block(
    walk: Walk, split: Split, block: int, wrong: list[Finding], *, only_if_old: bool = False
) -> None:
    key = layout.marker_key(split.path, block)
    # Without its marker the block counts as missing. The note that the split was complete is deleted
    # too, since with it the missing marker would count as deleted.
    repaired = walk.repair and (not only_if_old or walk.abandoned(key))
    if repaired:
        split.location.delete([key, layout.skipped_key(split.path, block)])
        forget_complete(split)
    walk.findings += [replace(one, repaired=repaired) for one in wrong]

"""Splits that a job is to write and has not begun, so that a store can say what it lacks.

A job that stops between two splits, on a full disk or killed, would leave no trace of those that were
to come. Before it fills the first it notes the others, as runs that wrote nothing yet; a note goes when
its split is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

from trakstore.storage import layout
from trakstore.storage.backends.location import Location
from trakstore.storage.layout import Epoch
from trakstore.storage.split import group_document
from trakstore.storage.tables.runs import PLANNED, Run, list_planned

__all__ = ["forget_plan", "note_plan", "planned_runs", "split_is_made"]


def note_plan(location: Location, run: Run, splits: Sequence[tuple[Epoch, str]]) -> None:
    """Note those of the splits that are not there yet; ``run`` says whose they are."""
    notes = {
        layout.document_key(layout.run_path(epoch, split, PLANNED)): group_document(
            asdict(replace(run, epoch=epoch, split=split, rows=0, blocks=0))
        )
        for epoch, split in _absent(location, splits)
    }
    if notes:
        location.put_if_absent(layout.document_key(layout.RUNS), group_document({}))
        location.put(notes)


def split_is_made(location: Location, epoch: Epoch, split: str) -> None:
    """Take back the note of a split whose document is there now."""
    location.delete_folder(layout.run_path(epoch, split, PLANNED))


def forget_plan(location: Location, epoch: Epoch, split: str | None = None) -> bool:
    """Take back the notes of splits that shall not come; whether there were any."""
    noted = [
        run
        for run in planned_runs(location)
        if run.epoch == layout.as_epoch(epoch) and split in (None, run.split)
    ]
    for run in noted:
        split_is_made(location, run.epoch, run.split)
    return bool(noted)


def planned_runs(location: Location) -> tuple[Run, ...]:
    """A run of each split that was noted and is not there, in order of epochs."""
    noted = {(run.epoch, run.split): run for run in list_planned(location)}
    absent = _absent(location, list(noted))
    return tuple(
        noted[one]
        for one in sorted(absent, key=lambda one: (*layout.epoch_sort_key(one[0]), one[1]))
    )


def _absent(location: Location, splits: Sequence[tuple[Epoch, str]]) -> list[tuple[Epoch, str]]:
    """Those of the splits that have no document."""
    keys = [layout.document_key(layout.split_path(epoch, split)) for epoch, split in splits]
    tails = location.get_tails(keys, 1)
    return [one for one, tail in zip(splits, tails, strict=True) if tail is None]

"""Records of the runs that wrote to a split, or are still to: when, by what, how much.

Kept apart from the specs, which are functions of what is stored and have no times in them.
"""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import trakstore
from trakstore.documents import entries, fields, made_by, text, whole
from trakstore.errors import TrakStoreError
from trakstore.markup import printable
from trakstore.storage import layout
from trakstore.storage.backends.location import Location
from trakstore.storage.group_documents import attributes, group_document, make_groups
from trakstore.storage.layout import Epoch

PLANNED = "planned"  # the last part of the name of a run that is still to come


@dataclass(frozen=True)
class Run:
    """Work of one process on one split.

    Attributes
    ----------
    epoch, split
        The split.
    job : str
        Name of the job, or of the function.
    began, ended : str
        ISO 8601, UTC.
    rank, world_size : int
        Number of the worker, and of all workers.
    device : str
        Device that computed the gradients.
    rows, blocks : int
        Amount that it wrote.
    versions : dict of str to str
        Versions of libraries.
    """

    epoch: Epoch
    split: str
    job: str
    began: str
    ended: str
    rank: int
    world_size: int
    device: str
    rows: int
    blocks: int
    versions: dict[str, str]

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Run:
        """Read the attributes of a record.

        Raises
        ------
        DamagedError
            When a field has a value that no run has.
        """
        known = fields(document, _RUN, what="the record")
        return cls(**{**known, "versions": dict(known["versions"])})


_RUN = {
    "epoch": made_by(layout.as_epoch, "an epoch"),
    "split": made_by(lambda name: layout.check_name(name, "split"), "a split"),
    **dict.fromkeys(("job", "began", "ended", "device"), text()),
    **dict.fromkeys(("rank", "world_size", "rows", "blocks"), whole()),
    "versions": entries(text(), text()),
}


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that features depend on."""
    # Its own is that of the code that runs: an editable installation's metadata may be older.
    versions = {"trakstore": trakstore.__version__}
    for name in ("torch", "zarr", "numcodecs", "numpy"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def now() -> str:
    """Return this moment, ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def record_run(location: Location, run: Run) -> None:
    """Add a record; records never replace one another."""
    _put(location, {layout.run_path(run.epoch, run.split, uuid.uuid4().hex[:12]): run})


def _put(location: Location, runs: Mapping[str, Run]) -> None:
    """Write records by their paths; each is one document, so that nothing commits it."""
    make_groups(location, layout.RUNS)
    location.put(
        {layout.document_key(path): group_document(asdict(run)) for path, run in runs.items()}
    )


def list_runs(location: Location) -> tuple[Run, ...]:
    """Return all records, oldest first; one that cannot be read is left out, with a warning.

    Nothing that is computed depends on them.
    """
    return tuple(sorted(_records(location, False), key=lambda run: (run.began, run.rank)))


def _records(location: Location, planned: bool) -> Iterator[Run]:
    for name in location.names(layout.RUNS):
        path = layout.child(layout.RUNS, name)
        # A run of its own has a random number, which never is this word.
        if name.endswith(f".{PLANNED}") != planned:
            continue
        document = location.get(layout.document_key(path))
        try:
            if document is not None:
                known = attributes(document, path)  # a later version may tell more
                yield Run.from_dict({field: known[field] for field in _RUN if field in known})
        except TrakStoreError as error:
            line = f"{printable(path)}: {error}; it is left out: no number depends on it"
            warnings.warn(line, stacklevel=2)


def note_plan(location: Location, run: Run, splits: Sequence[tuple[Epoch, str]]) -> None:
    """Note those of the splits that are not there yet; ``run`` says whose they are.

    A job that stops between two splits, on a full disk or killed, would otherwise leave no trace of
    those that were to come. A note is the record of a run that wrote nothing yet; it goes when its
    split is made.
    """
    noted = replace(run, rows=0, blocks=0)
    absent = _absent(location, splits)
    if absent:
        notes = {
            layout.run_path(*one, PLANNED): replace(noted, epoch=one[0], split=one[1])
            for one in absent
        }
        _put(location, notes)


def split_is_made(location: Location, epoch: Epoch, split: str) -> None:
    """Take back the note of a split whose document is there now."""
    location.delete_folder(layout.run_path(epoch, split, PLANNED))


def forget_plan(location: Location, epoch: Epoch, split: str | None = None) -> bool:
    """Take back the notes of splits that shall not come; tell whether there were any."""
    noted = [
        run
        for run in planned_runs(location)
        if run.epoch == layout.as_epoch(epoch) and split in (None, run.split)
    ]
    for run in noted:
        split_is_made(location, run.epoch, run.split)
    return bool(noted)


def planned_runs(location: Location) -> tuple[Run, ...]:
    """Return a run of each split that was noted and is not there, in order of epochs."""
    noted = {(run.epoch, run.split): run for run in _records(location, True)}
    # A job that was killed between making a split and taking back its note leaves both.
    absent = _absent(location, list(noted))
    order = sorted(absent, key=lambda one: (*layout.epoch_sort_key(one[0]), one[1]))
    return tuple(noted[one] for one in order)


def _absent(location: Location, splits: Sequence[tuple[Epoch, str]]) -> list[tuple[Epoch, str]]:
    """Return those of the splits that have no document."""
    keys = [layout.document_key(layout.split_path(epoch, split)) for epoch, split in splits]
    tails = location.get_tails(keys, 1)
    return [one for one, tail in zip(splits, tails, strict=True) if tail is None]

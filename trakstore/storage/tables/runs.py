"""A record of each run that wrote to a split: when, by what, how much.

Kept apart from the specs, which are functions of what is stored and have no times in them.
"""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from trakstore.documents import NAME, entries, fields, made_by, text, whole
from trakstore.errors import TrakStoreError
from trakstore.markup import printable
from trakstore.storage import layout
from trakstore.storage.backends.location import Location
from trakstore.storage.layout import Epoch
from trakstore.storage.split import attributes, group_document

__all__ = [
    "PLANNED",
    "Run",
    "library_versions",
    "list_planned",
    "list_runs",
    "now",
    "record_run",
]

PLANNED = "planned"  # the last part of the name of a run that is still to come


@dataclass(frozen=True)
class Run:
    """What one worker did to one split.

    Attributes
    ----------
    epoch, split
        Where.
    job : str
        Name of the job, or of the function.
    began, ended : str
        ISO 8601, UTC.
    rank, world_size : int
        Which worker of how many.
    device : str
        Where the gradients were computed.
    rows, blocks : int
        What it wrote.
    versions : dict of str to str
        Libraries.
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
        """From the attributes of a record.

        Raises
        ------
        DamagedError
            When a field has a value that no run has.
        """
        return cls(
            **{**fields(document, _RUN, what="the record"), "versions": document["versions"]}
        )


_RUN = {
    "epoch": made_by(layout.as_epoch, "an epoch"),
    "split": text(NAME),
    **dict.fromkeys(("job", "began", "ended", "device"), text()),
    **dict.fromkeys(("rank", "world_size", "rows", "blocks"), whole()),
    "versions": entries(text(), text()),
}


def library_versions() -> dict[str, str]:
    """Versions of what features depend on."""
    found = {}
    for name in ("trakstore", "torch", "zarr", "numcodecs", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def now() -> str:
    """This moment, ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def record_run(location: Location, run: Run) -> None:
    """Add a record; records never replace one another."""
    path = layout.run_path(run.epoch, run.split, uuid.uuid4().hex[:12])
    location.put_if_absent(layout.document_key(layout.RUNS), group_document({}))
    location.put({layout.document_key(path): group_document(asdict(run))})


def list_runs(location: Location) -> tuple[Run, ...]:
    """All records, oldest first; one that cannot be read is left out, with a warning.

    Nothing that is computed depends on them.
    """
    return tuple(sorted(_records(location, False), key=lambda run: (run.began, run.rank)))


def list_planned(location: Location) -> tuple[Run, ...]:
    """The records of runs that are still to come, whether or not their splits are there by now."""
    return tuple(_records(location, True))


def _records(location: Location, planned: bool) -> Iterator[Run]:
    for name in location.names(layout.RUNS):
        path = f"{layout.RUNS}/{name}"
        if name.endswith(f".{PLANNED}") != planned:
            continue
        document = location.get(layout.document_key(path))
        try:
            if document is not None:
                told = attributes(document, path)  # a later version may tell more
                yield Run.from_dict({field: told[field] for field in _RUN if field in told})
        except TrakStoreError as error:
            line = f"{printable(path)}: {error}; it is left out: no number depends on it"
            warnings.warn(line, stacklevel=2)

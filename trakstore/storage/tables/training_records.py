"""Samples as training saw them: small saved tables, added while a model trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trakstore.documents import each, fields, made_by, text, whole
from trakstore.errors import DamagedError, NotFoundError, TrakStoreError, did_you_mean
from trakstore.storage import layout
from trakstore.storage.backends.location import Location
from trakstore.storage.tables.saved_arrays import SavedArray
from trakstore.storage.tables.saved_table import (
    Part,
    known_fields,
    read_parts,
    table_arrays,
    table_names,
    write_table,
)

MEASURES = ("loss", "confidence", "correct", "margin", "el2n")
_CHUNK = 2**18  # rows


@dataclass(frozen=True)
class TrainingRun:
    """A training process that stores what it saw.

    Attributes
    ----------
    name : str
        Name of its own.
    started : str
        ISO 8601, to the microsecond.
    rank : int
    order : int
        Number of the run, from 1, counted since clocks go wrong. Of runs of one rank, a later one
        replaces what an earlier one said of the epochs from its own first on: so a training that was
        stopped goes on from a checkpoint. 0 for a run of format 1.
    samples : int, optional
        Size of its data set, where it is known.
    digest : str, optional
        Hash of all samples of its data set, in order, where they were read.
    """

    name: str
    started: str
    rank: int = 0
    order: int = 0
    samples: int | None = None
    digest: str | None = None

    @property
    def sort_key(self) -> tuple[int, str, str]:
        """Key that puts earlier runs first; the clock decides between runs that began at once."""
        return self.order, self.started, self.name

    @property
    def document(self) -> dict[str, Any]:
        """Its fields, without those that are not known."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class RecordPart(Part):
    """Some rows of one run: ``sample_id`` and ``epoch`` (rows,), and ``measures`` (rows, 5).

    Attributes
    ----------
    run : TrainingRun
        The process that saw them.
    number : int
        Number of this part of the run.
    first_epoch : int
        The lowest epoch among the rows.
    """

    run: TrainingRun
    number: int
    first_epoch: int

    @property
    def has_text_ids(self) -> bool:
        """True where its samples are named by text, and not by integers."""
        return any(array.name == "sample_id" and array.dtype == "str" for array in self.arrays)


def add_part(
    location: Location,
    split: str,
    run: TrainingRun,
    number: int,
    ids: NDArray[Any],
    epochs: NDArray[np.int64],
    measures: NDArray[np.float32],
) -> None:
    """Store rows under ``dynamics/{split}``: they count once all of them are there.

    Parameters
    ----------
    location : Location
    split : str
    run : TrainingRun
    number : int
        Another one for each part of a run.
    ids : array of int or str, shape (rows,)
    epochs : array of int64, shape (rows,)
    measures : array of float32, shape (rows, 5)
        Values in the order of :data:`MEASURES`.
    """
    if not len(ids):
        raise TrakStoreError("there are no rows to store")
    columns = {"sample_id": ids, "epoch": epochs, "measures": measures}
    what = {
        "run": run.document,
        "number": number,
        "first_epoch": int(epochs.min()),
        "measures": list(MEASURES),
    }
    # One table for each part, which nobody writes again: ranks and runs never wait for one another.
    arrays = [
        (SavedArray.of(name, values, ("sample", "measure")[: values.ndim], _CHUNK), values)
        for name, values in columns.items()
    ]
    write_table(location, layout.record_path(split, run.name, number), arrays, what)


def record_parts(location: Location, split: str) -> list[RecordPart]:
    """Return the parts that count, in the order in which training saw them.

    Raises
    ------
    NotFoundError
        When there are none.
    """
    parts = stored_parts(location, split)
    if not parts:
        near = did_you_mean(split, table_names(location, layout.DYNAMICS))
        raise NotFoundError(
            f"{location} has no training dynamics of {split!r}{near}; "
            f"TrainingDynamicsTracker records them while a model is trained"
        )
    return sorted(parts, key=lambda one: (one.first_epoch, one.run.sort_key, one.number))


def stored_parts(location: Location, split: str) -> list[RecordPart]:
    """Return the parts that are there, of all ranks, in no order."""
    return read_parts(location, layout.dynamics_path(split), read_record)


_RUN = {
    "name": text(),
    "started": text(),
    "rank": whole(),
    "order": whole(),
    "samples": whole(),
    "digest": text(),
}
_NOT_IN_ALL = ("order", "samples", "digest")
_PART = {
    "run": made_by(lambda told: TrainingRun(**fields(told, _RUN, _NOT_IN_ALL, "a run")), "a run"),
    "number": whole(),
    "first_epoch": whole(),
    "measures": each(text()),
}


def read_record(location: Location, path: str, what: Mapping[str, Any]) -> RecordPart:
    """Return a part from its document; raise a :class:`DamagedError` for one that no writer makes."""
    known, arrays = known_fields(what, _PART), table_arrays(what)
    # Shapes are compared before any array is read: a stranger's document could ask for any memory.
    shapes = {name: array.shape for name, array in arrays.items()}
    count = shapes.get("sample_id", (0,))[:1]
    if shapes != {"sample_id": count, "epoch": count, "measures": (*count, len(MEASURES))}:
        raise DamagedError(f"its arrays have shapes {shapes}, which do not fit together")
    del known["measures"]
    return RecordPart(location, path, tuple(arrays.values()), **known)

"""What was seen of samples while a model trained: small saved tables, added as training goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trakstore.documents import each, fields, made_by, text, whole
from trakstore.errors import (
    DamagedError,
    NotFoundError,
    TrakStoreError,
    did_you_mean,
    told_of,
)
from trakstore.storage import layout
from trakstore.storage.columns import column_dtype
from trakstore.storage.locations import Location
from trakstore.storage.saved import ARRAYS, SavedArray
from trakstore.storage.splits import attributes, group_document

__all__ = ["MEASURES", "RecordPart", "TrainingRun", "add_part", "read_record", "record_parts"]

MEASURES = ("loss", "confidence", "correct", "margin", "el2n")
_CHUNK = 2**18  # rows


@dataclass(frozen=True)
class TrainingRun:
    """Who writes: a training process.

    Attributes
    ----------
    name : str
        Of its own.
    started : str
        ISO 8601, to the microsecond. Of runs of one rank, a later one replaces what an earlier one
        said of the epochs from its own first on: so a training that was stopped is gone on with
        from a checkpoint.
    rank : int
    """

    name: str
    started: str
    rank: int = 0


@dataclass(frozen=True)
class RecordPart:
    """Some rows of one run, read when asked for.

    Attributes
    ----------
    location, path
        Where.
    run : TrainingRun
    number : int
        Parts of a run are counted.
    first_epoch : int
    arrays : tuple of SavedArray
    """

    location: Location
    path: str
    run: TrainingRun
    number: int
    first_epoch: int
    arrays: tuple[SavedArray, ...]

    def read(self, name: str) -> NDArray[Any]:
        """``sample_id`` or ``epoch``, shape (rows,), or ``measures``, (rows, 5)."""
        for array in self.arrays:
            if array.name == name:
                found = array.open(self.location, self.path)[...]
                return np.asarray(found)
        raise NotFoundError(f"{self.path} has no {name!r}")


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
        In the order of :data:`MEASURES`.
    """
    path = f"{layout.dynamics_path(split)}/{run.name}.{number}"
    columns = {"sample_id": ids, "epoch": epochs, "measures": measures}
    arrays = [_array(name, values) for name, values in columns.items()]
    for array, values in zip(arrays, columns.values(), strict=True):
        array.create(location, path)
        array.open(location, path, "r+")[...] = values
    what = {
        "run": vars(run),
        "number": number,
        "first_epoch": int(epochs.min()),
        "measures": list(MEASURES),
        ARRAYS: [array.to_dict() for array in arrays],
    }
    location.put({layout.document_key(path): group_document(what)})  # last: now they count


def _array(name: str, values: NDArray[Any]) -> SavedArray:
    if not len(values):
        raise TrakStoreError("there are no rows to store")
    chunks = (min(len(values), _CHUNK), *values.shape[1:])
    dimensions = ("sample", "measure")[: values.ndim]
    return SavedArray(name, column_dtype(values), values.shape, chunks, dimensions)


def record_parts(location: Location, split: str) -> list[RecordPart]:
    """The parts that count, in the order in which training saw them.

    Raises
    ------
    NotFoundError
        When there are none.
    """
    top = layout.dynamics_path(split)
    found = []
    for name in location.names(top):
        document = location.get(layout.document_key(f"{top}/{name}"))
        told = {} if document is None else attributes(document, f"{top}/{name}")
        if told:
            found.append(read_record(location, f"{top}/{name}", told))
    if not found:
        near = did_you_mean(split, _splits(location))
        raise NotFoundError(
            f"{location} has no training dynamics of {split!r}{near}; "
            f"TrainingDynamicsTracker records them while a model is trained"
        )
    return sorted(found, key=lambda one: (one.first_epoch, one.run.started, one.number))


_RUN = {"name": text(), "started": text(), "rank": whole()}
_PART = {
    "run": made_by(lambda told: TrainingRun(**fields(told, _RUN, what="a run")), "a run"),
    "number": whole(),
    "first_epoch": whole(),
    "measures": each(text()),
    ARRAYS: each(made_by(SavedArray.from_dict, "an array")),
}


def read_record(location: Location, path: str, told: Mapping[str, Any]) -> RecordPart:
    """A part from its document; raises a :class:`DamagedError` for one that no writer makes."""
    with told_of(path):
        known = fields(told, _PART)
        rows = {array.name: array.shape for array in known[ARRAYS]}
        count = rows.get("sample_id", (0,))[:1]
        if rows != {"sample_id": count, "epoch": count, "measures": (*count, len(MEASURES))}:
            raise DamagedError(f"its arrays have shapes {rows}, which do not fit together")
    return RecordPart(
        location, path, known["run"], known["number"], known["first_epoch"], known[ARRAYS]
    )


def _splits(location: Location) -> Sequence[str]:
    return [name for name in location.names(layout.DYNAMICS) if name != "zarr.json"]

"""What was seen of samples while a model trained: small saved tables, added as training goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trakstore.documents import anything, each, fields, made_by, text, whole
from trakstore.errors import (
    DamagedError,
    NotFoundError,
    TrakStoreError,
    did_you_mean,
    error_context,
)
from trakstore.storage import layout
from trakstore.storage.backends.location import Location
from trakstore.storage.columns import column_dtype
from trakstore.storage.tables.saved_arrays import SavedArray
from trakstore.storage.tables.saved_table import (
    ARRAYS,
    PLACE,
    begin_table,
    publish_table,
    read_table,
    table_arrays,
    table_names,
)

__all__ = [
    "MEASURES",
    "RecordPart",
    "TrainingRun",
    "add_part",
    "next_order",
    "read_record",
    "record_parts",
]

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
        ISO 8601, to the microsecond.
    rank : int
    order : int
        Runs are counted, since clocks go wrong: see :func:`next_order`. Of runs of one rank, a later
        one replaces what an earlier one said of the epochs from its own first on: so a training that
        was stopped is gone on with from a checkpoint. 0 for a run of format 1.
    """

    name: str
    started: str
    rank: int = 0
    order: int = 0

    @property
    def sort_key(self) -> tuple[int, str, str]:
        """Puts earlier runs first; the clock decides between runs that began at once."""
        return self.order, self.started, self.name


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
                return array.read(self.location, self.path)
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
    begun = begin_table(location, path, arrays)
    for array, values in zip(arrays, columns.values(), strict=True):
        array.write(location, path, values)
    what = {
        "run": vars(run),
        "number": number,
        "first_epoch": int(epochs.min()),
        "measures": list(MEASURES),
    }
    publish_table(location, path, arrays, what, instead_of=begun)


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
    found = _parts(location, split)
    if not found:
        near = did_you_mean(split, _splits(location))
        raise NotFoundError(
            f"{location} has no training dynamics of {split!r}{near}; "
            f"TrainingDynamicsTracker records them while a model is trained"
        )
    return found


def next_order(location: Location, split: str) -> int:
    """The number of a run that begins now: behind all that have stored something."""
    return 1 + max((part.run.order for part in _parts(location, split)), default=0)


def _parts(location: Location, split: str) -> list[RecordPart]:
    top, found = layout.dynamics_path(split), []
    for name in table_names(location, top):
        path = f"{top}/{name}"
        if told := read_table(location, path):
            found.append(read_record(location, path, told))
    return sorted(found, key=lambda one: (one.first_epoch, one.run.sort_key, one.number))


_RUN = {"name": text(), "started": text(), "rank": whole(), "order": whole()}
_PART = {
    "run": made_by(lambda told: TrainingRun(**fields(told, _RUN, ("order",), "a run")), "a run"),
    "number": whole(),
    "first_epoch": whole(),
    "measures": each(text()),
    ARRAYS: anything(),
    PLACE: text(),
}


def read_record(location: Location, path: str, told: Mapping[str, Any]) -> RecordPart:
    """A part from its document; raises a :class:`DamagedError` for one that no writer makes."""
    with error_context(f"{location}: {path}"):
        known, arrays = fields(told, _PART, (PLACE,)), table_arrays(told)
        rows = {name: array.shape for name, array in arrays.items()}
        count = rows.get("sample_id", (0,))[:1]
        if rows != {"sample_id": count, "epoch": count, "measures": (*count, len(MEASURES))}:
            raise DamagedError(f"its arrays have shapes {rows}, which do not fit together")
    numbers = (known["number"], known["first_epoch"])
    return RecordPart(location, path, known["run"], *numbers, tuple(arrays.values()))


def _splits(location: Location) -> Sequence[str]:
    return table_names(location, layout.DYNAMICS)

"""Models that were trained again on subsets of the train rows: who had which rows, what they gave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trakstore.documents import anything, entries, fields, text, whole
from trakstore.errors import DamagedError, NotFoundError, did_you_mean, error_context
from trakstore.storage import layout
from trakstore.storage.backends.location import Location
from trakstore.storage.tables.saved_arrays import SavedArray, begin_group
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
    "ModelPart",
    "add_models",
    "begin_set",
    "missing_set",
    "model_parts",
    "read_models",
    "sets_of_models",
]


@dataclass(frozen=True)
class ModelPart:
    """Some models, numbered from ``first`` on; arrays are read when asked for.

    Attributes
    ----------
    location, path
        Where.
    first, count : int
        Numbers of the models: first..first + count.
    plan : mapping
        What subsets and seeds follow from; equal for all parts of a set.
    arrays : tuple of SavedArray
        ``subset``, ``output``, and ``predicted`` where there are classes.
    """

    location: Location
    path: str
    first: int
    count: int
    plan: Mapping[str, Any]
    arrays: tuple[SavedArray, ...]

    def read(self, name: str) -> NDArray[Any]:
        """``subset`` (count, train rows) of bool; ``output`` (count, targets) of float32; where
        there are classes, ``predicted`` (count, targets) of int64.
        """
        for array in self.arrays:
            if array.name == name:
                return array.read(self.location, self.path)
        raise NotFoundError(f"{self.path} has no {name!r}")


def add_models(
    location: Location,
    name: str,
    plan: Mapping[str, Any],
    first: int,
    subset: NDArray[np.bool_],
    output: NDArray[np.float32],
    predicted: NDArray[np.int64] | None = None,
) -> None:
    """Store models under ``evaluation/{name}``: they count once all of them are there.

    Parameters
    ----------
    location : Location
    name : str
        Of the set.
    plan : mapping
        Plain values; see :class:`ModelPart`.
    first : int
        Number of the first model.
    subset : ndarray of bool, shape (models, train rows)
    output : ndarray of float32, shape (models, targets)
    predicted : ndarray of int64, shape (models, targets), optional
        Classes.
    """
    path = f"{layout.evaluation_path(name)}/models.{first}"
    columns: dict[str, NDArray[Any]] = {"subset": subset, "output": output}
    if predicted is not None:
        columns["predicted"] = predicted
    arrays = [_array(one, values) for one, values in columns.items()]
    begun = begin_table(location, path, arrays)
    for array, values in zip(arrays, columns.values(), strict=True):
        array.write(location, path, values)
    what = {"first": first, "count": len(output), "plan": dict(plan)}
    publish_table(location, path, arrays, what, instead_of=begun)


def begin_set(location: Location, name: str) -> None:
    """Make the groups above the models of a set, so that the place is there for other processes."""
    begin_group(location, layout.evaluation_path(name))


def _array(name: str, values: NDArray[Any]) -> SavedArray:
    dimensions = ("model", "train" if name == "subset" else "target")
    return SavedArray(name, str(values.dtype), values.shape, values.shape, dimensions)


def model_parts(location: Location, name: str) -> list[ModelPart]:
    """The parts of a set that count, by number; none where nothing of it is there."""
    top, found = layout.evaluation_path(name), []
    for part in table_names(location, top):
        path = f"{top}/{part}"
        if told := read_table(location, path):
            found.append(read_models(location, path, told))
    return sorted(found, key=lambda one: one.first)


_PART = {
    "first": whole(),
    "count": whole(1),
    "plan": entries(text(), anything()),
    ARRAYS: anything(),
    PLACE: text(),
}


def read_models(location: Location, path: str, told: Mapping[str, Any]) -> ModelPart:
    """A part from its document; raises a :class:`DamagedError` for one that no writer makes."""
    with error_context(f"{location}: {path}"):
        known, arrays = fields(told, _PART, (PLACE,)), table_arrays(told)
        shapes = {name: array.shape for name, array in arrays.items()}
        right = {"subset", "output"} <= shapes.keys() <= {"subset", "output", "predicted"}
        right = right and all(len(s) == 2 and s[0] == known["count"] for s in shapes.values())
        if not right or shapes.get("predicted", shapes["output"]) != shapes["output"]:
            raise DamagedError(f"its arrays have shapes {shapes}, which do not fit together")
    numbers = (known["first"], known["count"], dict(known["plan"]))
    return ModelPart(location, path, *numbers, tuple(arrays.values()))


def sets_of_models(location: Location) -> list[str]:
    """Names of the sets that have models."""
    names = table_names(location, layout.EVALUATION)
    return [name for name in names if model_parts(location, name)]


def missing_set(location: Location, name: str) -> NotFoundError:
    """What to raise where a set is asked for that is not there."""
    near = did_you_mean(name, sets_of_models(location))
    return NotFoundError(f"{location} has no models trained again named {name!r}{near}")

"""Models that were trained again on subsets of the train rows: which rows each had, what it gave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trakstore.documents import anything, entries, text, whole
from trakstore.errors import DamagedError, NotFoundError, did_you_mean
from trakstore.storage import layout
from trakstore.storage.backends.location import Location
from trakstore.storage.group_documents import make_groups
from trakstore.storage.tables.saved_arrays import SavedArray
from trakstore.storage.tables.saved_table import (
    Part,
    known_fields,
    read_parts,
    table_arrays,
    table_names,
    write_table,
)


@dataclass(frozen=True)
class ModelPart(Part):
    """Some models, numbered from ``first`` on.

    Its arrays are ``subset`` (count, train rows) of bool, ``output`` (count, targets) of float32 and,
    where there are classes, ``predicted`` (count, targets) of int64.

    Attributes
    ----------
    first, count : int
        Numbers of the models: first..first + count.
    plan : mapping
        Values that subsets and seeds follow from; equal for all parts of a set.
    """

    first: int
    count: int
    plan: Mapping[str, Any]


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
        Name of the set.
    plan : mapping
        Plain values; see :class:`ModelPart`.
    first : int
        Number of the first model.
    subset : ndarray of bool, shape (models, train rows)
    output : ndarray of float32, shape (models, targets)
    predicted : ndarray of int64, shape (models, targets), optional
        Classes.
    """
    columns = {"subset": subset, "output": output, "predicted": predicted}
    arrays = [
        (SavedArray.of(one, values, ("model", "train" if one == "subset" else "target")), values)
        for one, values in columns.items()
        if values is not None
    ]
    what = {"first": first, "count": len(output), "plan": dict(plan)}
    write_table(location, layout.models_path(name, first), arrays, what)


def begin_set(location: Location, name: str) -> None:
    """Make the groups above the models of a set, so that the place is there for other processes."""
    make_groups(location, layout.evaluation_path(name))


def model_parts(location: Location, name: str) -> list[ModelPart]:
    """Return the parts of a set that count, by number; none where nothing of it is there."""
    parts = read_parts(location, layout.evaluation_path(name), read_models)
    # A listing comes in the order of names, in which models.100 is before models.50.
    return sorted(parts, key=lambda one: one.first)


_PART = {"first": whole(), "count": whole(1), "plan": entries(text(), anything())}


def read_models(location: Location, path: str, what: Mapping[str, Any]) -> ModelPart:
    """Return a part from its document; raise a :class:`DamagedError` for one that no writer makes."""
    known, arrays = known_fields(what, _PART), table_arrays(what)
    shapes = {name: array.shape for name, array in arrays.items()}
    right = {"subset", "output"} <= shapes.keys() <= {"subset", "output", "predicted"}
    right = right and all(len(s) == 2 and s[0] == known["count"] for s in shapes.values())
    if not right or shapes.get("predicted", shapes["output"]) != shapes["output"]:
        raise DamagedError(f"its arrays have shapes {shapes}, which do not fit together")
    known["plan"] = dict(known["plan"])
    return ModelPart(location, path, tuple(arrays.values()), **known)


def sets_of_models(location: Location) -> list[str]:
    """Return the names of the sets that have models."""
    names = table_names(location, layout.EVALUATION)
    return [name for name in names if model_parts(location, name)]


def missing_set(location: Location, name: str) -> NotFoundError:
    """Return the error to raise where a set is asked for that is not there."""
    near = did_you_mean(name, sets_of_models(location))
    return NotFoundError(f"{location} has no models trained again named {name!r}{near}")

"""Factors that gradients were multiplied with before the projection, in a table named by their hash.

The factors are written before the store's spec, which names them: of several processes that make a
store at once, each may write a table of its own, and the spec that comes first says which one counts.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trakstore.documents import one_of, text
from trakstore.errors import DamagedError, LocationError, NotFoundError
from trakstore.spec import ParameterSpec
from trakstore.storage import layout
from trakstore.storage.backends.location import Location
from trakstore.storage.claims import claimed
from trakstore.storage.tables.saved_arrays import SavedArray
from trakstore.storage.tables.saved_table import (
    known_fields,
    read_table,
    table_arrays,
    write_table,
)

_ATTEMPTS, _REST = 10, 0.5  # seconds
_FIELDS = {"digest": text(), "version": one_of(1)}


class Factors(NamedTuple):
    """Factors of all parameters, one behind the other in the order of the store's spec.

    Attributes
    ----------
    rows, columns : ndarray of float32, one dimension
        A gradient g of a parameter seen as (first dimension, rest) becomes rows[r]·g[r, c]·columns[c].
    """

    rows: NDArray[np.float32]
    columns: NDArray[np.float32]


def factors_digest(factors: Factors, parameters: ParameterSpec) -> str:
    """Return SHA-256 over the names and shapes of parameters and the little-endian factors."""
    digest = hashlib.sha256(json.dumps(parameters.to_dict()["shapes"]).encode())
    for column in factors:
        digest.update(column.astype("<f4").tobytes())
    return digest.hexdigest()


def write_factors(location: Location, factors: Factors, digest: str) -> None:
    """Store factors, unless they are there."""
    path = layout.scale_path(digest)
    if read_table(location, path):
        return
    columns = [
        (SavedArray.of(name, values, (name.removesuffix("s"),)), values)
        for name, values in factors._asdict().items()
    ]
    for left in reversed(range(_ATTEMPTS)):
        try:
            with claimed(location, path, "scale"):
                if not read_table(location, path):
                    write_table(location, path, columns, {"digest": digest, "version": 1})
        except LocationError:
            # Another process writes the same bytes, and is soon done; or nobody can write here.
            if not left:
                raise
            time.sleep(_REST)
        if read_table(location, path):
            return


def read_factors(location: Location, digest: str, parameters: ParameterSpec) -> Factors:
    """Read the factors that a store's spec names.

    Raises
    ------
    NotFoundError
        When they are not there.
    DamagedError
        When they are not those that the spec names.
    """
    path = layout.scale_path(digest)
    what = read_table(location, path)
    if not what:
        raise NotFoundError(
            f"{location}: the factors of the store's scale, {path}, are not there; put them back from "
            f"a copy, or featurize into another store"
        )
    arrays = table_arrays(what)
    check_factors(location, path, what)
    factors = Factors(*(arrays[name].read(location, path) for name in Factors._fields))
    if factors_digest(factors, parameters) != digest:
        raise DamagedError(f"{location}: {path} holds other factors than the store's spec names")
    return factors


def check_factors(_: Location, path: str, what: Mapping[str, Any]) -> None:
    """Raise a :class:`DamagedError` for a document that no writer makes."""
    known, arrays = known_fields(what, _FIELDS), table_arrays(what)
    kinds = {name: (len(one.shape), one.dtype) for name, one in arrays.items()}
    named = known["digest"] == layout.last_part(path)
    if not named or kinds != dict.fromkeys(Factors._fields, (1, "float32")):
        raise DamagedError(f"{path} is no table of factors")

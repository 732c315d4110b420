"""Saved tables: scores, grams, what training showed, models that were trained again.

A table is a group of arrays that counts once its document is there, which is written last. The
document says where the table belongs, and how every chunk of its arrays ends: what was swapped,
copied or put back from an older store is not taken for it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from trakstore.documents import each, made_by
from trakstore.errors import DamagedError, LocationError, SpecMismatchError
from trakstore.storage import layout
from trakstore.storage.backends.location import Location
from trakstore.storage.block_checks import Finding
from trakstore.storage.split import attributes, group_document
from trakstore.storage.tables.saved_arrays import UNFINISHED, SavedArray, begin_group

__all__ = [
    "ARRAYS",
    "PLACE",
    "begin_table",
    "check_table",
    "delete_table",
    "pending_arrays",
    "publish_table",
    "read_table",
    "table_arrays",
    "table_names",
]

ARRAYS = "arrays"  # the attribute that holds them,
PENDING = "pending"  # the one that says what is being saved, until then,
PLACE = "place"  # and where the table belongs


_ARRAYS = each(made_by(SavedArray.from_dict, "an array"))


def publish_table(
    location: Location,
    path: str,
    arrays: Sequence[SavedArray],
    what: Mapping[str, Any],
    *,
    instead_of: bytes | None = None,
) -> None:
    """Write the document of a table whose arrays are written: from now on it counts.

    Parameters
    ----------
    location : Location
    path : str
        Of the group.
    arrays : sequence of SavedArray
    what : mapping
        Plain values for JSON.
    instead_of : bytes, optional
        The document that has to be there until now, where others may have begun the same table.

    Raises
    ------
    DamagedError
        When a chunk is gone.
    LocationError
        When the document is not what it has to be: another process writes the same table.
    """
    sealed = [array.sealed(location, path) for array in arrays]
    key = layout.document_key(path)
    if instead_of is not None and location.get(key) != instead_of:
        raise LocationError(
            f"{location}: another process began to write {path} meanwhile; choose another name, or "
            f"wait for it and try again"
        )
    told = {**what, PLACE: path, ARRAYS: [array.to_dict() for array in sealed]}
    location.put({key: group_document(told)})


def read_table(location: Location, path: str) -> dict[str, Any]:
    """What a table is; empty where there is none, or it is not whole yet.

    Raises
    ------
    DamagedError
        When its document is damaged, belongs elsewhere, or is gone though the arrays are there.
    """
    key = layout.document_key(path)
    document = location.get(key)
    if document in (None, UNFINISHED) and _has_arrays(location, path):
        document = location.get(key)  # it may have been begun just now
        if document in (None, UNFINISHED):
            what = "is missing" if document is None else "is empty"
            raise DamagedError(
                f"{location}: {key} {what} though its arrays are there; put it back from a copy, or "
                f"remove {path}"
            )
    if document in (None, UNFINISHED):
        return {}
    found = attributes(document or b"", path)
    if PENDING in found:
        return {}
    if found.get(PLACE, path) != path:
        raise DamagedError(f"{location}: {key} is the document of {found[PLACE]!r:.80}")
    if not isinstance(found.get(ARRAYS), list):
        raise DamagedError(f"{location}: {key} names no arrays")
    return found


def table_arrays(what: Mapping[str, Any]) -> dict[str, SavedArray]:
    """The arrays of a table, by name, from what :func:`read_table` gave."""
    found = _ARRAYS(what[ARRAYS], "arrays of a saved table")
    return {array.name: array for array in found}


def table_names(location: Location, top: str) -> list[str]:
    """Names of the groups below ``top``, whole or not."""
    return [
        name
        for name in location.names(top)
        if name != layout.document_key("") and not layout.is_leftover(name)
    ]


def begin_table(
    location: Location, path: str, arrays: Sequence[SavedArray], token: str = ""
) -> bytes:
    """Make the arrays of a table, and say meanwhile of what it is going to be.

    Returns
    -------
    bytes
        The document that is there until :func:`publish_table`, whom it tells that no other process
        began the same table.
    """
    begin_group(location, path.rpartition("/")[0])
    key = layout.document_key(path)
    location.put({key: _pending("", [])})  # chunks of another table go before these are named
    for array in arrays:
        array.create(location, path)
    document = _pending(token, arrays)
    location.put({key: document})
    return document


def _pending(token: str, arrays: Sequence[SavedArray]) -> bytes:
    told = {"of": token, "nonce": secrets.token_hex(8)}
    return group_document({PENDING: {**told, ARRAYS: [array.to_dict() for array in arrays]}})


def pending_arrays(document: bytes | None, token: str) -> list[SavedArray]:
    """The arrays that a save of what ``token`` names was stopped on; none of another, or whole."""
    if document in (None, UNFINISHED):
        return []
    told = attributes(document or b"", "a saved table").get(PENDING)
    if not isinstance(told, dict) or told.get("of") != token:
        return []
    return list(_ARRAYS(told.get(ARRAYS), "arrays of a saved table"))


def delete_table(location: Location, path: str) -> None:
    """Delete a table: from the first step on nobody reads it, and the document goes last."""
    key = layout.document_key(path)
    location.put({key: _pending("", [])})
    for name in table_names(location, path):
        location.delete_folder(f"{path}/{name}")
    location.delete([key])
    location.delete_folder(path)


def check_table(
    location: Location,
    path: str,
    read: Callable[[Location, str, dict[str, Any]], object] | None = None,
) -> Iterator[Finding]:
    """What is wrong with a table; nothing is while it has not been written to the end.

    ``read``, given what :func:`read_table` gives, raises for a table that it cannot be read as.
    """
    key = layout.document_key(path)
    try:
        found = read_table(location, path)
        arrays = table_arrays(found) if found else {}
        if found and read is not None:
            read(location, path, found)
    except (DamagedError, SpecMismatchError) as error:
        yield Finding("document", key, f"is missing, damaged or elsewhere ({error})")
        return
    if found and group_document(found) != location.get(key):
        yield Finding("document", key, "is not as it was written")
    for array in arrays.values():
        yield from array.check(location, path)


def _has_arrays(location: Location, path: str) -> bool:
    own = layout.document_key(path)
    return any(not layout.is_leftover(k) for k in location.find(path, lambda one: one != own))

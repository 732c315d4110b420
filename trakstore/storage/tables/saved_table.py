"""Saved tables: the one way to keep arrays that count all at once or not at all.

Saved scores, grams, parts of what training showed and models that were trained again are tables: groups
of arrays below a path of their own. To add one:

1. :func:`begin_table` puts a document with the one attribute ``pending`` in the group's place, and
   makes the arrays. From then on readers take the table for one that is not there. The pending
   document holds a random nonce, so that no two writings are alike, and may name what is saved, so
   that a save that was stopped can go on (:func:`pending_arrays`).
2. The writer writes chunks, in any order, by any number of processes.
3. :func:`publish_table` reads how every chunk ends (its tail), looks whether the pending document is
   still the writer's own, and puts the document that counts in its place: plain values, the table's
   place, its arrays and all tails.

:func:`write_table` does all three for arrays in memory. A process that is killed before the last step
leaves a table that is not there; its chunks go when the table is begun again. A reader takes only
chunks whose tails are those of the document: what was swapped, copied or put back from an older store
is damage, as is a document in another place, or arrays without one. Of two processes that write the
same table the later one's pending document stops the earlier; those that must not meet take a claim
first (:mod:`~trakstore.storage.claims`).

Documents without arrays (records of runs) are put whole in one request, and need none of this.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from numpy.typing import NDArray

from trakstore.documents import Check, anything, each, fields, made_by, text
from trakstore.errors import (
    DamagedError,
    LocationError,
    NotFoundError,
    SpecMismatchError,
    error_context,
)
from trakstore.storage import layout
from trakstore.storage.backends.location import Location
from trakstore.storage.block_checks import Finding
from trakstore.storage.group_documents import (
    EMPTY,
    PLACE,
    attributes,
    group_document,
    make_groups,
)
from trakstore.storage.tables.saved_arrays import SavedArray

ARRAYS = "arrays"  # the attribute that holds a table's arrays,
PENDING = "pending"  # and the one that says what is being saved, until then

T = TypeVar("T")

_ARRAYS = each(made_by(SavedArray.from_dict, "an array"))


def begin_table(
    location: Location, path: str, arrays: Sequence[SavedArray], token: str = ""
) -> bytes:
    """Make the arrays of a table, and say meanwhile what it is going to be.

    Parameters
    ----------
    location : Location
    path : str
        Path of the group.
    arrays : sequence of SavedArray
        Arrays to make, without what is there.
    token : str
        Name of what is saved, for :func:`pending_arrays`.

    Returns
    -------
    bytes
        The document that is there until :func:`publish_table`, which sees by it that no other process
        began the same table.
    """
    make_groups(location, layout.parent(path))
    key = layout.document_key(path)
    # Chunks of another table go before the new arrays are named: a process that goes on with this save
    # takes every chunk that it finds for one of it.
    location.put({key: _pending("", [])})
    for array in arrays:
        array.create(location, path)
    document = _pending(token, arrays)
    location.put({key: document})
    return document


def begin_longer_table(
    location: Location, path: str, arrays: Sequence[SavedArray], token: str = ""
) -> bytes:
    """Say that a table is written again with arrays as long or longer, whose chunks so far stay.

    Takes and gives what :func:`begin_table` does. A chunk that an array ended in has to be written
    again before the table is published: it has fill values where the new rows belong. The same call
    begins a save again that was stopped: between the two requests here, arrays keep documents of
    their old lengths.
    """
    document = _pending(token, arrays)
    location.put({layout.document_key(path): document})
    location.put({layout.document_key(path, one.name): one.document for one in arrays})
    return document


def _pending(token: str, arrays: Sequence[SavedArray]) -> bytes:
    known = {"of": token, "nonce": secrets.token_hex(8)}
    return group_document({PENDING: {**known, ARRAYS: [array.to_dict() for array in arrays]}})


def pending_arrays(document: bytes | None, token: str) -> list[SavedArray]:
    """Return the arrays of a save of what ``token`` names that was stopped; none of any other."""
    begun = pending_save(document)
    return begun[1] if begun is not None and begun[0] == token else []


def pending_save(document: bytes | None) -> tuple[str, list[SavedArray]] | None:
    """Return what a save that was stopped is of, and its arrays; None for a document of no save.

    Raises
    ------
    DamagedError
        When the document is damaged.
    """
    if document in (None, EMPTY):
        return None
    known = attributes(document or b"", "a saved table").get(PENDING)
    if not isinstance(known, dict) or not isinstance(known.get("of"), str):
        return None
    return known["of"], list(_ARRAYS(known.get(ARRAYS), "arrays of a saved table"))


def publish_table(
    location: Location,
    path: str,
    arrays: Sequence[SavedArray],
    what: Mapping[str, Any],
    *,
    instead_of: bytes,
) -> None:
    """Write the document of a table whose arrays are written: from now on it counts.

    Parameters
    ----------
    location : Location
    path : str
        Path of the group.
    arrays : sequence of SavedArray
        All of its arrays.
    what : mapping
        Plain values for JSON.
    instead_of : bytes
        Document that :func:`begin_table` gave, and that has to be there until now.

    Raises
    ------
    DamagedError
        When a chunk is gone.
    LocationError
        When another process began to write the same table.
    """
    sealed = [array.sealed(location, path).to_dict() for array in arrays]
    key = layout.document_key(path)
    # After the tails were read: had another process begun before, its chunks could be among them.
    if location.get(key) != instead_of:
        raise LocationError(
            f"{location}: another process began to write {path} meanwhile; choose another name, or "
            f"wait for it and try again"
        )
    location.put({key: group_document({**what, PLACE: path, ARRAYS: sealed})})


def write_table(
    location: Location,
    path: str,
    columns: Sequence[tuple[SavedArray, NDArray[Any]]],
    what: Mapping[str, Any],
) -> None:
    """Write a table whose values are in memory: it counts once all of them are there."""
    arrays = [array for array, _ in columns]
    begun = begin_table(location, path, arrays)
    for array, values in columns:
        array.write(location, path, values)
    publish_table(location, path, arrays, what, instead_of=begun)


def read_table(location: Location, path: str) -> dict[str, Any]:
    """Read what a table is; empty where there is none, or it is not whole yet.

    Raises
    ------
    DamagedError
        When its document is damaged, belongs elsewhere, or is gone though the arrays are there.
    """
    key = layout.document_key(path)
    document = location.get(key)
    # Every writer puts a pending document before the first array: arrays without a document had one
    # that was deleted. It is looked for again, since the table may have been begun just now.
    if document in (None, EMPTY) and _has_arrays(location, path):
        document = location.get(key)
        if document in (None, EMPTY):
            what = "is missing" if document is None else "is empty"
            raise DamagedError(
                f"{location}: {key} {what} though its arrays are there; put it back from a copy, or "
                f"remove {path}"
            )
    if document in (None, EMPTY):
        return {}
    known = attributes(document or b"", path)
    if PENDING in known:
        return {}
    # Tables of format 1 do not say where they belong.
    if known.get(PLACE, path) != path:
        raise DamagedError(f"{location}: {key} is the document of {known[PLACE]!r:.80}")
    if not isinstance(known.get(ARRAYS), list):
        raise DamagedError(f"{location}: {key} names no arrays")
    return known


def table_arrays(what: Mapping[str, Any]) -> dict[str, SavedArray]:
    """Return the arrays of a table, by name, from what :func:`read_table` gave."""
    arrays = _ARRAYS(what[ARRAYS], "arrays of a saved table")
    return {array.name: array for array in arrays}


def known_fields(
    what: Mapping[str, Any], checks: Mapping[str, Check], missing: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the checked fields of a table, from what :func:`read_table` gave, without its arrays.

    Those that are ``missing`` in some tables are left out where they are.
    """
    known = fields(what, {**checks, ARRAYS: anything(), PLACE: text()}, (PLACE, *missing))
    return {name: known[name] for name in checks if name in known}


def table_names(location: Location, top: str) -> list[str]:
    """List the names of the groups below ``top``, whole or not."""
    return [
        name
        for name in location.names(top)
        if name != layout.DOCUMENT and not layout.is_leftover(name)
    ]


@dataclass(frozen=True)
class Part:
    """A whole table that is a part of something; its arrays are read when asked for.

    Attributes
    ----------
    location, path
        Place of the table.
    arrays : tuple of SavedArray
        Its arrays.
    """

    location: Location
    path: str
    arrays: tuple[SavedArray, ...]

    def read(self, name: str) -> NDArray[Any]:
        """Read the array of this name."""
        for array in self.arrays:
            if array.name == name:
                return array.read(self.location, self.path)
        raise NotFoundError(f"{self.path} has no {name!r}")


def read_parts(
    location: Location, top: str, read: Callable[[Location, str, dict[str, Any]], T]
) -> list[T]:
    """Read the whole tables below ``top``, each by ``read`` from what :func:`read_table` gives."""
    parts = []
    for name in table_names(location, top):
        path = layout.child(top, name)
        if what := read_table(location, path):
            with error_context(f"{location}: {path}"):
                parts.append(read(location, path, what))
    return parts


def delete_table(location: Location, path: str) -> None:
    """Delete a table: from the first step on nobody reads it, and the document goes last."""
    # First it becomes a table that is not whole yet: a reader that has its document already finds
    # chunks missing, which is damage to it, but no other reader begins.
    key = layout.document_key(path)
    location.put({key: _pending("", [])})
    for name in table_names(location, path):
        location.delete_folder(layout.child(path, name))
    location.delete([key])
    location.delete_folder(path)


def check_table(
    location: Location,
    path: str,
    read: Callable[[Location, str, dict[str, Any]], object] | None = None,
) -> Iterator[Finding]:
    """Yield what is wrong with a table; nothing is while it has not been written to the end.

    ``read``, given what :func:`read_table` gives, raises for a table that it cannot be read as.
    """
    key = layout.document_key(path)
    try:
        what = read_table(location, path)
        arrays = table_arrays(what) if what else {}
        if what and read is not None:
            read(location, path, what)
    except (DamagedError, SpecMismatchError) as error:
        yield Finding("document", key, f"is missing, damaged or elsewhere ({error})")
        return
    if what and group_document(what) != location.get(key):
        yield Finding("document", key, "is not as it was written")
    for array in arrays.values():
        yield from array.check(location, path)


def rewrite_documents(location: Location, path: str) -> None:
    """Write the documents again that follow from a table's own, where they are other bytes: its own
    from what it says, and those of its arrays.

    Raises
    ------
    DamagedError
        When its own cannot be read.
    """
    what = read_table(location, path)
    wanted = {layout.document_key(path): group_document(what)} if what else {}
    for array in table_arrays(what).values() if what else ():
        wanted[layout.document_key(path, array.name)] = array.document
    location.put({key: one for key, one in wanted.items() if location.get(key) != one})


def _has_arrays(location: Location, path: str) -> bool:
    own = layout.document_key(path)
    return any(not layout.is_leftover(k) for k in location.find(path, lambda one: one != own))

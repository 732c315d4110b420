"""Documents of groups: JSON with a checksum, the same bytes for the same attributes.

What a store says of itself, of a split, a table, a mask, a claim or a run is kept in the attributes of
a zarr group. The checksum reveals a damaged document; the place that most of them record reveals one
that was copied from elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from crc32c import crc32c

from trakstore.documents import Check, fields, parsed
from trakstore.errors import DamagedError, SpecMismatchError, error_context
from trakstore.storage import layout
from trakstore.storage.backends.location import Location

_CHECKSUM = "crc32c"
_OWN = "trakstore"
PLACE = "place"  # the attribute that says at which path a document belongs
# The attribute that names the arrays which xarray takes for coordinates: ids, and arrays that are no
# data. All our other attributes lie below one of our own, out of the way of people who open a group.
COORDINATES = "coordinates"


def group_document(attributes: Mapping[str, Any]) -> bytes:
    """Return the zarr document of a group: a pure function of its attributes, with their checksum."""
    checked = {**attributes, _CHECKSUM: _checksum(attributes)} if attributes else {}
    if COORDINATES in checked:
        checked = {COORDINATES: checked.pop(COORDINATES), _OWN: checked}
    document = {"zarr_format": 3, "node_type": "group", "attributes": checked}
    return json.dumps(document, indent=1, sort_keys=True).encode()


def attributes(document: bytes, where: str, *, check: bool = True) -> dict[str, Any]:
    """Return the attributes in a group's document, without their checksum.

    Raises
    ------
    DamagedError
        When the document is not what was written.
    """
    # Without a place in front, the message begins with the fault.
    at = f"{where}: " if where else ""
    with error_context(where) if where else nullcontext():
        whole = parsed(document)
    known = whole.get("attributes") if isinstance(whole, dict) else None
    if not isinstance(known, dict):
        raise DamagedError(f"{at}the metadata document is damaged (it has no attributes)")
    if known.keys() == {COORDINATES, _OWN} and isinstance(known[_OWN], dict):
        known = {**known[_OWN], COORDINATES: known[COORDINATES]}
    stored = known.pop(_CHECKSUM, None)
    if check and known and stored != _checksum(known):
        raise DamagedError(
            f"{at}the metadata document is damaged (its attributes have checksum "
            f"{_checksum(known)}, it says {stored})"
        )
    return known


def placed_fields(document: bytes, path: str, checks: Mapping[str, Check]) -> dict[str, Any]:
    """Return the checked attributes of a document that says that it belongs at ``path``.

    Raises
    ------
    DamagedError
        When it is damaged, has other fields, or belongs elsewhere.
    """
    try:
        known = fields(attributes(document, ""), checks, what="it")
    except SpecMismatchError as error:
        raise DamagedError(str(error)) from error
    if known[PLACE] != path:
        raise DamagedError(f"it is the document of {known[PLACE]!r:.80}")
    return known


EMPTY = group_document({})


def make_groups(location: Location, path: str) -> None:
    """Make the group at ``path`` and those above it, the highest first, where there are none."""
    location.put_all_if_absent(dict.fromkeys(layout.document_keys(path), EMPTY))


def _checksum(attributes: Mapping[str, Any]) -> int:
    text = json.dumps(attributes, sort_keys=True, separators=(",", ":"))
    return crc32c(text.encode())

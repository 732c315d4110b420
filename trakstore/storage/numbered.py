"""Documents that are numbered: each is published once, by exactly one of all who try.

A document is never written again, so that who read the highest, changed it and published it under the
next number knows that nothing came between; who loses reads again.
"""

from __future__ import annotations

from trakstore.storage import layout
from trakstore.storage.backends.location import Location

__all__ = ["highest", "publish_numbered", "stored_numbers"]


def stored_numbers(location: Location, path: str) -> list[int]:
    """The numbers that have a folder, ascending; a writer that was killed may have left it empty."""
    found = (name for name in location.names(path) if name.isascii() and name.isdecimal())
    return sorted(int(name) for name in found if str(int(name)) == name)


def highest(location: Location, path: str, numbers: list[int]) -> tuple[int, bytes] | None:
    """The highest of these numbers that has a document, and that."""
    for number in reversed(numbers):
        document = location.get(layout.document_key(f"{path}/{number}"))
        if document is not None:
            return number, document
    return None


def publish_numbered(location: Location, path: str, number: int, document: bytes) -> bool:
    """Publish a document, which must be like no other; whether this call did, and no other.

    A number below the highest is one that was used and deleted: it is given back.
    """
    key = layout.document_key(f"{path}/{number}")
    if location.put_if_absent(key, document) != document:
        return False
    if stored_numbers(location, path)[-1:] == [number]:
        return True
    location.delete([key])
    return False

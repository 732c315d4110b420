"""Documents that are numbered: each is published once, by exactly one of all who try.

A document is never written again by others. So a process that read the highest, changed it and
published it under the next number knows that nothing came between; one that loses reads again.
"""

from __future__ import annotations

from collections.abc import Iterable

from trakstore.storage import layout
from trakstore.storage.backends.location import Location


def numbers_among(names: Iterable[str]) -> list[int]:
    """Return the names that are numbers as trakstore writes them, ascending."""
    digits = (name for name in names if name.isascii() and name.isdecimal())
    return sorted(int(name) for name in digits if str(int(name)) == name)


def stored_numbers(location: Location, path: str) -> list[int]:
    """Return the numbers that have a folder, ascending; a killed writer may have left one empty."""
    return numbers_among(location.names(path))


def highest(location: Location, path: str, numbers: list[int]) -> tuple[int, bytes] | None:
    """Return the highest of these numbers that has a document, and the document."""
    for number in reversed(numbers):
        document = location.get(layout.document_key(path, number))
        if document is not None:
            return number, document
    return None


def publish_numbered(location: Location, path: str, number: int, document: bytes) -> bool:
    """Publish a document, which must be like no other; tell whether this call did, and no other.

    The key is written only where it is absent. Whether this call wrote it is not known from that: the
    reply to a request that won may be lost. So what is there is read back and compared.
    """
    key = layout.document_key(path, number)
    if location.put_if_absent(key, document) != document:
        return False
    # Older documents may be deleted. A slow process may then find a number absent that was used before,
    # and below the highest: its document would count for nobody, so it is taken back.
    if stored_numbers(location, path)[-1:] == [number]:
        return True
    location.delete([key])
    return False

"""Numbered documents: each is published once, by exactly one of those who try.

Nobody overwrites a document. So a process that read the highest one, changed it and published the
result under the next number knows that nothing came between; one that loses reads again.
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
    """Return the numbers that have a folder, ascending; a killed writer may leave an empty folder."""
    return numbers_among(location.names(path))


def highest(location: Location, path: str, numbers: list[int]) -> tuple[int, bytes] | None:
    """Return the highest of these numbers that has a document, and the document."""
    for number in reversed(numbers):
        document = location.get(layout.document_key(path, number))
        if document is not None:
            return number, document
    return None


def publish_numbered(location: Location, path: str, number: int, document: bytes) -> bool:
    """Publish a document unlike any other; tell whether this call published it.

    The key is written only if it is absent. Success cannot be known from that, since the reply to a
    winning request may be lost: the stored document is read back and compared.
    """
    key = layout.document_key(path, number)
    if location.put_if_absent(key, document) != document:
        return False
    # Older documents may be deleted. A slow process may then find a used number absent, below the
    # highest: its document would never count, so it is taken back.
    if stored_numbers(location, path)[-1:] == [number]:
        return True
    location.delete([key])
    return False

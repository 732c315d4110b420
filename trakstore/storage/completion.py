"""Notes that splits were complete, so that a marker deleted later is noticed.

Its files cannot tell a block whose marker is gone from one that was never written. The document
``_complete/{epoch}/{split}`` says that all blocks of so many rows were committed.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass

from trakstore.documents import text, whole
from trakstore.errors import DamagedError, LocationError
from trakstore.storage import layout
from trakstore.storage.backends.location import Location
from trakstore.storage.group_documents import group_document, make_groups, placed_fields
from trakstore.storage.split import Split


@dataclass(frozen=True)
class Completion:
    """A note that a split was complete.

    Attributes
    ----------
    place : str
        Path of the note itself.
    nonce : int
        Nonce of the split; the note does not hold for another split of the same name.
    rows : int
        Number of rows that were there.
    """

    place: str
    nonce: int
    rows: int

    @property
    def document(self) -> bytes:
        return group_document(asdict(self))


_FIELDS = {"place": text(), "nonce": whole(0, 2**32 - 1), "rows": whole(1)}


def read_completion(location: Location, path: str) -> Completion | None:
    """Read the note at a path; None where there is none.

    Raises
    ------
    DamagedError
        When the document is damaged or belongs elsewhere.
    """
    document = location.get(layout.document_key(path))
    if document is None:
        return None
    return Completion(**placed_fields(document, path, _FIELDS))


def note_complete(split: Split) -> bool:
    """Note that all rows of a split are committed, unless some are missing; tell whether it is noted.

    If the note cannot be written, as on a full disk, the rows are there all the same.
    """
    with suppress(LocationError):
        return _noted(split)
    return False


def _noted(split: Split) -> bool:
    place, path = split.location, layout.complete_path(split.epoch, split.name)
    try:
        there = read_completion(place, path)
    except DamagedError:  # it is written again
        there = None
    if there is not None and there.nonce == split.spec.nonce and there.rows >= split.rows:
        return True
    if split.missing_blocks():
        return False
    make_groups(place, layout.parent(path))
    own = Completion(path, split.spec.nonce, split.rows)
    place.put({layout.document_key(path): own.document})
    # Whoever deletes a marker takes the note back afterwards. If that happened between the two
    # listings, this note came too late, and would turn the repaired block into a deleted one.
    if split.missing_blocks():
        forget_complete(split)
        return False
    return True


def forget_complete(split: Split) -> None:
    """Take the note back after a marker was deleted that is to be written again."""
    split.location.delete_folder(layout.complete_path(split.epoch, split.name))

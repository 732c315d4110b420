"""Splits whose features were deleted on purpose, since a stored gram serves every query of them.

The document ``_dropped/{epoch}/{split}`` is published before the first chunk is deleted. The split's
other columns and its markers stay: the split is complete, and no worker writes it again.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from trakstore.documents import text, whole
from trakstore.errors import DamagedError, IncompleteError
from trakstore.spec import SplitSpec
from trakstore.storage import layout
from trakstore.storage.backends.location import Location
from trakstore.storage.group_documents import group_document, make_groups, placed_fields

# Weighting of these rows in their kernel: that of loss gradients, the square of out_to_loss.
WEIGHTING: Literal["loss"] = "loss"


@dataclass(frozen=True)
class DroppedRows:
    """A note that the features of a split were deleted.

    Attributes
    ----------
    place : str
        Path of the note itself.
    nonce, rows : int
        Nonce of the split, and its number of rows; the note does not hold for another split.
    gram : str
        Path of the gram that is kept.
    """

    place: str
    nonce: int
    rows: int
    gram: str

    @property
    def document(self) -> bytes:
        return group_document(asdict(self))

    def is_of(self, spec: SplitSpec) -> bool:
        """Tell whether the note belongs to the split with this spec, and not to another of its name."""
        return (self.nonce, self.rows) == (spec.nonce, spec.rows)


_FIELDS = {"place": text(), "nonce": whole(0, 2**32 - 1), "rows": whole(1), "gram": text()}


def dropped_columns(spec: SplitSpec) -> tuple[str, ...]:
    """Return the columns to be deleted: features, activations, and the scale of rows in 8 bits.

    Without the scale, a plain Zarr reader sees NaN for such rows; with it, a number that means nothing.
    """
    scale = (layout.ROW_SCALE,) if layout.ROW_SCALE in dict(spec.columns) else ()
    return (layout.FEATURES, *dict(spec.widths), *scale)


def kept_gram(split: str) -> str:
    """Return the path of the gram that is kept of the split at a path."""
    return layout.gram_of(split, WEIGHTING)


def read_dropped(location: Location, split: str) -> DroppedRows | None:
    """Read the note on the split at a path; None where there is none.

    Raises
    ------
    DamagedError
        When the document is damaged or belongs elsewhere.
    """
    path = layout.dropped_path(split)
    document = location.get(layout.document_key(path))
    if document is None:
        return None
    try:
        return placed_note(document, path)
    except DamagedError as error:
        raise DamagedError(
            f"{location}: {path}, which says that rows were dropped, is damaged ({error}): trakstore "
            f"verify --repair writes it again if the rows are gone and their gram is whole, else "
            f"deletes it"
        ) from error


def placed_note(document: bytes, path: str) -> DroppedRows:
    """Return the note in the document at a path; raise for one that is damaged or belongs elsewhere."""
    note = DroppedRows(**placed_fields(document, path, _FIELDS))
    gram = kept_gram(layout.below(layout.DROPPED, path))
    if note.gram != gram:
        raise DamagedError(f"it names {note.gram!r:.80} as the gram, which is {gram}")
    return note


def is_dropped(location: Location, split: str, spec: SplitSpec) -> bool:
    """Tell whether the features of the split at a path, of this spec, were deleted."""
    # Other splits are never dropped, so that opening them needs no further request.
    if not split.endswith(layout.SAMPLED):
        return False
    note = read_dropped(location, split)
    return note is not None and note.is_of(spec)


def note_dropped(location: Location, split: str, nonce: int, rows: int, gram: str) -> None:
    """Note that the features of the split at a path are to be deleted: nobody reads them any more."""
    path = layout.dropped_path(split)
    make_groups(location, layout.parent(path))
    location.put({layout.document_key(path): DroppedRows(path, nonce, rows, gram).document})


def forget_dropped(location: Location, split: str) -> None:
    """Delete the note on the split at a path."""
    location.delete_folder(layout.dropped_path(split))


def dropped_error(split: str, why: str = "") -> IncompleteError:
    """Return the error for asking for the features of the split at a path, which were deleted."""
    epoch, _, name = split.partition("/")
    return IncompleteError(
        f"the rows of {name} at epoch {epoch} were dropped, and only their gram is kept"
        f"{why and '; '}{why}: to have the rows again, drop the split (store.drop) and featurize the "
        f"draws again"
    )

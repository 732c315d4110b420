"""Samples of a split that are left out, for each epoch: one document, replaced by the next.

``_masks/{split}/{number}`` holds all epochs, so that a change of several epochs is made completely or
not at all; of two changes at once, the second is made again on top of the first. The empty group
``{number}.kept`` is made after the document, and stays if that is deleted, so that a deleted document
differs from one that was never written.
"""

from __future__ import annotations

import base64
import secrets
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trakstore.documents import anything, each, entries, fields, made_by, text, whole
from trakstore.errors import DamagedError, LocationError, SpecMismatchError, error_context
from trakstore.storage import layout
from trakstore.storage.backends.location import Location
from trakstore.storage.group_documents import (
    EMPTY,
    PLACE,
    group_document,
    make_groups,
    placed_fields,
)
from trakstore.storage.numbered import numbers_among

ATTEMPTS = 100
_MOST_ROWS = 2**28  # of a mask, which is held in memory
_PIECE = 2**16  # bytes

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class MaskEntry:
    """Rows that are left out of a split at one epoch.

    Attributes
    ----------
    nonce : int
        Nonce of the split; the entry does not hold for a later split of the same name.
    rows : int
        Rows of the split when the mask was made; rows appended later are not left out.
    packed : str
        One bit for each row, compressed with zlib, as base64 text, which is short if few rows are left
        out. Only :meth:`positions` and :meth:`altered` unpack it.
    """

    nonce: int
    rows: int
    packed: str

    @classmethod
    def of(cls, nonce: int, rows: int, positions: Positions) -> MaskEntry:
        """Make the entry that leaves out the rows at some positions."""
        bits = np.zeros(-(-rows // 8), np.uint8)
        return cls(nonce, rows, _packed(bits, positions, True))

    def positions(self, rows: int) -> Positions:
        """Return those of the first ``rows`` rows that are left out, ascending.

        Raises
        ------
        DamagedError
            When it cannot be unpacked.
        """
        rows = min(rows, self.rows)
        bits, parts = self._bits(rows), [np.empty(0, dtype=np.int64)]
        # Piece by piece: an unpacked row takes one byte, and its position eight.
        for first in range(0, len(bits), _PIECE):
            some = np.unpackbits(bits[first : first + _PIECE], bitorder="little")
            parts.append(np.flatnonzero(some[: rows - 8 * first]) + 8 * first)
        return np.concatenate(parts)

    def altered(self, positions: Positions, masked: bool, rows: int) -> tuple[MaskEntry, int]:
        """Return the entry with these rows masked, or unmasked, and how many rows that changed.

        The split has ``rows`` rows.
        """
        # Kept as bits throughout: a stranger's document may leave out 2**28 rows, whose positions would
        # take two gigabytes.
        rows = max(rows, self.rows)
        bits, before = np.zeros(-(-rows // 8), np.uint8), self._bits(self.rows)
        bits[: len(before)] = before
        already = (bits[positions >> 3] >> (positions & 7).astype(np.uint8) & 1).astype(bool)
        entry = MaskEntry(self.nonce, rows, _packed(bits, positions, masked))
        return entry, int(np.count_nonzero(already != masked))

    def _bits(self, rows: int) -> NDArray[np.uint8]:
        """Unpack the bits of the first rows, and no more, whatever the document holds."""
        size = -(-rows // 8)
        try:
            packed = base64.b64decode(self.packed, validate=True)
            bits = zlib.decompressobj().decompress(packed, size)
        except (ValueError, zlib.error) as error:
            raise DamagedError(f"the rows to leave out cannot be unpacked ({error})") from error
        if len(bits) != size:
            raise DamagedError(f"the mask has {len(bits)} bytes, needed {size} for {rows} rows")
        return np.frombuffer(bits, np.uint8)


def _packed(bits: NDArray[np.uint8], positions: Positions, masked: bool) -> str:
    """Set or clear some bits, and pack all; row 0 is the lowest bit of the first byte."""
    own = np.uint8(1) << (positions & 7).astype(np.uint8)
    # Several positions may share a byte: an ordinary |= or &= would apply only one of them.
    if masked:
        np.bitwise_or.at(bits, positions >> 3, own)
    else:
        np.bitwise_and.at(bits, positions >> 3, ~own)
    return base64.b64encode(zlib.compress(bits.tobytes())).decode()


@dataclass(frozen=True)
class Masks:
    """Rows that are left out of a split, by epoch.

    Attributes
    ----------
    number : int
        Number of the document that they were read from, 0 for none.
    entries : mapping of str to MaskEntry
        Entries by the path of the epoch.
    place : str
        Path of the document.
    """

    number: int = 0
    entries: Mapping[str, MaskEntry] = field(default_factory=dict)
    place: str = ""

    def positions(self, epoch: layout.Epoch, nonce: int, rows: int) -> Positions | None:
        """Return the rows of a split that are left out; None if the document has no entry for it."""
        entry = self.entries.get(layout.epoch_path(epoch))
        if entry is None or entry.nonce != nonce:
            return None
        with error_context(self.place):
            return entry.positions(rows)


def read_masks(location: Location, split: str) -> Masks:
    """Read which rows of a split are left out now.

    Raises
    ------
    DamagedError
        When the document is damaged, belongs elsewhere, or was deleted.
    """
    path = layout.masks_path(split)
    names = set(location.names(path))
    for number in reversed(mask_numbers(names)):
        document = location.get(layout.document_key(path, number))
        if document is not None:
            return parsed_masks(document, path, number)
        # A number without a document or a `.kept` group was never published: a writer was killed
        # between making the folder and the document.
        kept = layout.kept_path(path, number)
        if layout.last_part(kept) in names and location.get(layout.document_key(kept)) is not None:
            raise DamagedError(
                f"{location}: {layout.child(path, number)} was deleted: it says which samples are left "
                f"out; put it back from a copy, or mask the samples again after removing {path}"
            )
    return Masks()


def mask_numbers(names: Iterable[str]) -> list[int]:
    """Return the numbers that have a folder or a `.kept` group, ascending."""
    return numbers_among({name.removesuffix(layout.KEPT) for name in names})


def _note_written(location: Location, path: str, number: int) -> None:
    """Make the group that remains when the document of this number is deleted."""
    location.put_if_absent(layout.document_key(layout.kept_path(path, number)), EMPTY)


def change_masks(
    location: Location, split: str, change: Callable[[Masks], dict[str, MaskEntry] | None]
) -> None:
    """Replace the entries of a split's mask, whatever other processes do at the same time.

    Parameters
    ----------
    location : Location
    split : str
    change : callable
        Gets what is left out now and gives the entries of the epochs that change, or None where
        nothing does. It is called again when another change came first.

    Raises
    ------
    LocationError
        When others come first again and again.
    """
    path = layout.masks_path(split)
    make_groups(location, path)
    for _ in range(ATTEMPTS):
        current = read_masks(location, split)
        # The last writer may have been killed after its document and before this.
        if current.number:
            _note_written(location, path, current.number)
        changed = change(current)
        if changed is None:
            return
        number = current.number + 1
        document = _document({**current.entries, **changed}, layout.child(path, number))
        # Documents of masks are never deleted, so whoever finds a number absent is the first to use it.
        # The next may be there already, made from this one.
        if location.put_if_absent(layout.document_key(path, number), document) == document:
            _note_written(location, path, number)
            return
    raise LocationError(
        f"{location}: what is left out of {split} was changed by others {ATTEMPTS} times meanwhile; "
        f"try again"
    )


def _document(by_epoch: Mapping[str, MaskEntry], place: str) -> bytes:
    """Return the document of these entries: a mask that several epochs share is written once."""
    masks = sorted({entry.packed for entry in by_epoch.values()})
    epochs = {
        epoch: {"nonce": entry.nonce, "rows": entry.rows, "mask": masks.index(entry.packed)}
        for epoch, entry in by_epoch.items()
    }
    # A random text makes each document unique: who wrote it reads back whether its own is there.
    known = {PLACE: place, "writing": secrets.token_hex(8), "masks": masks, "epochs": epochs}
    return group_document(known)


def parsed_masks(document: bytes, path: str, number: int) -> Masks:
    """Return what the document of this number says; raise for one of another place.

    Raises
    ------
    DamagedError
        When it belongs at another path, or is no such document.
    """
    place, made = layout.child(path, number), dict[str, MaskEntry]()
    try:
        known = placed_fields(document, place, _MASKS)
        for epoch, entry in known["epochs"]:
            own = fields(entry, _ENTRY, what="an epoch")
            if own["mask"] >= len(known["masks"]):
                raise DamagedError(f"an epoch names mask {own['mask']} of {len(known['masks'])}")
            made[epoch] = MaskEntry(own["nonce"], own["rows"], known["masks"][own["mask"]])
    except (DamagedError, SpecMismatchError) as error:
        raise DamagedError(f"{place} is no list of rows to leave out ({error})") from error
    return Masks(number, made, place)


def _long_text(value: Any) -> str:
    """Return a text of any length: ``documents.text()`` allows short ones only."""
    if not isinstance(value, str):
        raise TypeError
    return value


_MASKS = {
    PLACE: text(),
    "writing": text(),
    "masks": each(made_by(_long_text, "text")),
    "epochs": entries(text(), anything()),
}
_ENTRY = {"nonce": whole(0, 2**32 - 1), "rows": whole(1, _MOST_ROWS), "mask": whole()}

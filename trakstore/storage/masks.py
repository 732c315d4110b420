"""Which samples of a split are left out, at all epochs: one document, replaced by the next.

``_masks/{split}/{number}`` says it for every epoch at once, so that a change of several epochs is made
as a whole or not at all; of two changes at once, the second is made again on top of the first. The
group ``{number}.kept``, made after it, tells a document that was deleted from one that never was.
"""

from __future__ import annotations

import base64
import secrets
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trakstore.documents import anything, each, entries, fields, made_by, text, whole
from trakstore.errors import DamagedError, LocationError, SpecMismatchError, error_context
from trakstore.storage import layout
from trakstore.storage.backends.location import Location
from trakstore.storage.numbered import publish_numbered
from trakstore.storage.split import attributes, group_document

__all__ = [
    "MaskEntry",
    "Masks",
    "change_masks",
    "kept_key",
    "parsed_masks",
    "read_masks",
    "stored_numbers_of",
]

ATTEMPTS = 100
_KEPT = ".kept"
_MOST_ROWS = 2**28  # of a mask, which is held in memory
_PIECE = 2**16  # bytes

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class MaskEntry:
    """What is left out of a split at one epoch.

    Attributes
    ----------
    nonce : int
        Of the split: of another one of the same name this says nothing.
    rows : int
        Of the split when it was said; later ones are not left out.
    packed : str
        Which rows, as the document has it. Eight rows to a byte, a thousand times smaller where few
        are left out: unpacked only where it is asked of a split, for as many rows as that has.
    """

    nonce: int
    rows: int
    packed: str

    @classmethod
    def of(cls, nonce: int, rows: int, positions: Positions) -> MaskEntry:
        """From the positions of rows that are left out."""
        return cls(
            nonce, rows, _packed(_changed(np.zeros(-(-rows // 8), np.uint8), positions, True))
        )

    def positions(self, rows: int) -> Positions:
        """Those of the first ``rows`` rows that are left out, ascending.

        Raises
        ------
        DamagedError
            When it cannot be unpacked.
        """
        rows = min(rows, self.rows)
        bits, found = self._bits(rows), [np.empty(0, dtype=np.int64)]
        for first in range(0, len(bits), _PIECE):  # not all at once: a row takes eight bytes
            some = np.unpackbits(bits[first : first + _PIECE], bitorder="little")
            found.append(np.flatnonzero(some[: rows - 8 * first]) + 8 * first)
        return np.concatenate(found)

    def altered(self, positions: Positions, masked: bool, rows: int) -> tuple[MaskEntry, int]:
        """With rows of a split of so many left out, or taken in again; and how many were not so."""
        rows = max(rows, self.rows)
        bits = np.zeros(-(-rows // 8), np.uint8)
        before = self._bits(self.rows)
        bits[: len(before)] = before
        already = (bits[positions >> 3] >> (positions & 7).astype(np.uint8) & 1).astype(bool)
        changed = int(np.count_nonzero(already != masked))
        return MaskEntry(self.nonce, rows, _packed(_changed(bits, positions, masked))), changed

    def _bits(self, rows: int) -> NDArray[np.uint8]:
        size = -(-rows // 8)
        try:
            told = base64.b64decode(self.packed, validate=True)
            bits = zlib.decompressobj().decompress(told, size)
        except (ValueError, zlib.error) as error:
            raise DamagedError(f"the rows to leave out cannot be unpacked ({error})") from error
        if len(bits) != size:
            raise DamagedError(f"the rows to leave out are {len(bits)} bytes for {rows} rows")
        return np.frombuffer(bits, np.uint8)


def _changed(bits: NDArray[np.uint8], positions: Positions, masked: bool) -> NDArray[np.uint8]:
    """The same array with some bits set, or cleared; row 0 is the lowest bit of the first byte."""
    own = np.uint8(1) << (positions & 7).astype(np.uint8)
    if masked:
        np.bitwise_or.at(bits, positions >> 3, own)
    else:
        np.bitwise_and.at(bits, positions >> 3, ~own)
    return bits


def _packed(bits: NDArray[np.uint8]) -> str:
    return base64.b64encode(zlib.compress(bits.tobytes())).decode()


@dataclass(frozen=True)
class Masks:
    """What is left out of a split, by epoch; ``number`` of the document that says so, 0 for none."""

    number: int = 0
    of: Mapping[str, MaskEntry] = field(default_factory=dict)
    place: str = ""

    def positions(self, epoch: layout.Epoch, nonce: int, rows: int) -> Positions | None:
        """Rows that are left out of a split with so many; None where nothing was ever said."""
        entry = self.of.get(layout.epoch_path(epoch))
        if entry is None or entry.nonce != nonce:
            return None
        with error_context(self.place):
            return entry.positions(rows)


def read_masks(location: Location, split: str) -> Masks:
    """What is left out of a split now.

    Raises
    ------
    DamagedError
        When the document that says so is damaged, belongs elsewhere, or was deleted.
    """
    path = layout.masks_path(split)
    names = set(location.names(path))
    for number in reversed(stored_numbers_of(names)):
        document = location.get(layout.document_key(f"{path}/{number}"))
        if document is not None:
            return parsed_masks(document, path, number)
        if f"{number}{_KEPT}" in names and location.get(kept_key(path, number)) is not None:
            break
    else:
        return Masks()
    raise DamagedError(
        f"{location}: {path}/{number} was deleted: it says which samples are left out; put it back "
        f"from a copy, or mask the samples again after removing {path}"
    )


def stored_numbers_of(names: set[str]) -> list[int]:
    """The numbers that have a document, or had one, ascending."""
    digits = {name.removesuffix(_KEPT) for name in names}
    return sorted(int(one) for one in digits if one.isascii() and one.isdecimal())


def kept_key(path: str, number: int) -> str:
    """Key of what stays when the document of this number is deleted."""
    return layout.document_key(f"{path}/{number}{_KEPT}")


def change_masks(
    location: Location, split: str, change: Callable[[Masks], dict[str, MaskEntry] | None]
) -> None:
    """Replace what is left out, whatever others do at the same time.

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
    location.put_all_if_absent(dict.fromkeys(layout.document_keys(path), group_document({})))
    for _ in range(ATTEMPTS):
        now = read_masks(location, split)
        if now.number:  # one that was stopped may have left this undone
            location.put_if_absent(kept_key(path, now.number), group_document({}))
        changed = change(now)
        if changed is None:
            return
        number = now.number + 1
        document = group_document(_told({**now.of, **changed}, path, number))
        if publish_numbered(location, path, number, document):
            location.put_if_absent(kept_key(path, number), group_document({}))
            return
    raise LocationError(
        f"{location}: what is left out of {split} was changed by others {ATTEMPTS} times meanwhile; "
        f"try again"
    )


def _told(entries: Mapping[str, MaskEntry], path: str, number: int) -> dict[str, Any]:
    """As attributes: equal masks once, in bits."""
    masks = sorted({entry.packed for entry in entries.values()})
    return {
        "place": f"{path}/{number}",
        "writing": secrets.token_hex(8),
        "masks": masks,
        "epochs": {
            epoch: {"nonce": entry.nonce, "rows": entry.rows, "mask": masks.index(entry.packed)}
            for epoch, entry in entries.items()
        },
    }


def parsed_masks(document: bytes, path: str, number: int) -> Masks:
    """What the document of this number says; raises a :class:`DamagedError` for another's."""
    found = attributes(document, f"{path}/{number}")
    if found.get("place") != f"{path}/{number}":
        raise DamagedError(f"{path}/{number} holds the document of {found.get('place')!r:.80}")
    try:
        known = fields(found, _MASKS)
        masks, made = known["masks"], dict[str, MaskEntry]()
        for epoch, told in known["epochs"]:
            own = fields(told, _ENTRY, what="an epoch")
            made[epoch] = MaskEntry(own["nonce"], own["rows"], masks[own["mask"]])
    except (DamagedError, SpecMismatchError, IndexError) as error:
        raise DamagedError(f"{path}/{number} is no list of rows to leave out ({error})") from error
    return Masks(number, made, f"{path}/{number}")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


_MASKS = {
    "place": text(),
    "writing": text(),
    "masks": each(made_by(_text, "text")),
    "epochs": entries(text(), anything()),
}
_ENTRY = {"nonce": whole(0, 2**32 - 1), "rows": whole(1, _MOST_ROWS), "mask": whole()}

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

from trakstore.documents import anything, each, entries, fields, text, whole
from trakstore.errors import DamagedError, LocationError, SpecMismatchError
from trakstore.storage import layout
from trakstore.storage.backends.location import Location
from trakstore.storage.numbered import publish_numbered
from trakstore.storage.split import attributes, group_document

__all__ = [
    "MaskEntry",
    "Masks",
    "change_masks",
    "check_masks",
    "kept_key",
    "read_masks",
    "stored_numbers_of",
]

ATTEMPTS = 100
_KEPT = ".kept"
_MOST_ROWS = 2**28  # of a mask, which is held in memory
_PIECE = 2**16  # bytes

Positions = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class MaskEntry:
    """What is left out of a split at one epoch.

    Attributes
    ----------
    nonce : int
        Of the split: of another one of the same name this says nothing.
    rows : int
        Of the split when it was said; later ones are not left out.
    positions : ndarray of int64
        Rows that are left out, ascending.
    """

    nonce: int
    rows: int
    positions: Positions


@dataclass(frozen=True, eq=False)
class Masks:
    """What is left out of a split, by epoch; ``number`` of the document that says so, 0 for none."""

    number: int = 0
    of: Mapping[str, MaskEntry] = field(default_factory=dict)

    def positions(self, epoch: layout.Epoch, nonce: int, rows: int) -> Positions | None:
        """Rows that are left out at an epoch; None where nothing was ever said."""
        entry = self.of.get(layout.epoch_path(epoch))
        if entry is None or entry.nonce != nonce:
            return None
        return entry.positions[entry.positions < rows]


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
            return _parsed(document, path, number)
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


def check_masks(document: bytes, path: str, number: int) -> dict[str, Any]:
    """The attributes of a document that says what is left out; raises a :class:`DamagedError`."""
    _parsed(document, path, number)
    return attributes(document, path)


def _told(entries: Mapping[str, MaskEntry], path: str, number: int) -> dict[str, Any]:
    """As attributes: equal masks once, in bits."""
    bits = {epoch: _packed(entry) for epoch, entry in entries.items()}
    masks = sorted(set(bits.values()))
    return {
        "place": f"{path}/{number}",
        "writing": secrets.token_hex(8),
        "masks": masks,
        "epochs": {
            epoch: {"nonce": entry.nonce, "rows": entry.rows, "mask": masks.index(bits[epoch])}
            for epoch, entry in entries.items()
        },
    }


def _packed(entry: MaskEntry) -> str:
    mask = np.zeros(entry.rows, dtype=bool)
    mask[entry.positions] = True
    return base64.b64encode(zlib.compress(np.packbits(mask, bitorder="little").tobytes())).decode()


def _parsed(document: bytes, path: str, number: int) -> Masks:
    found = attributes(document, f"{path}/{number}")
    if found.get("place") != f"{path}/{number}":
        raise DamagedError(f"{path}/{number} holds the document of {found.get('place')!r:.80}")
    try:
        known = fields(found, _MASKS)
        masks, made = known["masks"], dict[str, MaskEntry]()
        for epoch, told in known["epochs"]:
            own = fields(told, _ENTRY, what="an epoch")
            positions = _unpacked(masks[own["mask"]], own["rows"])
            made[epoch] = MaskEntry(own["nonce"], own["rows"], positions)
    except (DamagedError, SpecMismatchError, ValueError, IndexError, zlib.error) as error:
        raise DamagedError(f"{path}/{number} is no list of rows to leave out ({error})") from error
    return Masks(number, made)


_MASKS = {
    "place": text(),
    "writing": text(),
    "masks": each(anything()),
    "epochs": entries(text(), anything()),
}
_ENTRY = {"nonce": whole(0, 2**32 - 1), "rows": whole(1, _MOST_ROWS), "mask": whole()}


def _unpacked(text: str, rows: int) -> Positions:
    size = -(-rows // 8)
    packed = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), size)
    if len(packed) != size:
        raise ValueError(f"{len(packed)} bytes for {rows} rows")
    content, found = np.frombuffer(packed, np.uint8), [np.empty(0, dtype=np.int64)]
    for first in range(0, size, _PIECE):  # not all bits at once, which take eight times as much
        bits = np.unpackbits(content[first : first + _PIECE], bitorder="little")
        found.append(np.flatnonzero(bits[: rows - 8 * first]) + 8 * first)
    return np.concatenate(found)

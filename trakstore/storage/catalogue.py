"""The names of epochs and splits of a store, as far as this process knows.

They are read when a store is opened, and kept up to date by all that this process does, so that to show
a store, or to ask what there is, reads nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from weakref import WeakValueDictionary

from trakstore.errors import NotFoundError, TrakStoreError, did_you_mean
from trakstore.storage import layout
from trakstore.storage.backends.location import Location
from trakstore.storage.backends.together import together
from trakstore.storage.layout import Epoch
from trakstore.storage.snapshots import open_splits
from trakstore.storage.split import Split


@dataclass(frozen=True)
class Seen:
    """A split as it was when this process opened it last: its rows, and whether all were there."""

    rows: int
    complete: bool


class Catalogue:
    """Names of the splits of each epoch of one store, and what was seen of them."""

    def __init__(self) -> None:
        # Replaced as a whole, never changed: other threads may be going through it.
        self._splits: dict[Epoch, dict[str, Seen | None]] = {}

    @property
    def epochs(self) -> tuple[Epoch, ...]:
        """Epochs: integers in order, then names."""
        return tuple(sorted(self._splits, key=layout.epoch_sort_key))

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits of all epochs."""
        return tuple(sorted({name for names in self._splits.values() for name in names}))

    def splits_of(self, epoch: Epoch) -> tuple[str, ...]:
        """Return the names of the splits of one epoch."""
        return tuple(sorted(self._splits.get(layout.as_epoch(epoch), ())))

    def seen(self, epoch: Epoch, split: str) -> Seen | None:
        """Return a split as it was when it was opened; None for one that never was."""
        return self._splits.get(layout.as_epoch(epoch), {}).get(split)

    def add(self, epoch: Epoch, splits: Mapping[str, Seen | None]) -> None:
        """Take in splits that were made or opened."""
        own = layout.as_epoch(epoch)
        self._splits = {**self._splits, own: {**self._splits.get(own, {}), **splits}}

    def remove(self, epoch: Epoch, split: str | None = None) -> None:
        """Leave out what was dropped; a whole epoch without a ``split``."""
        own = layout.as_epoch(epoch)
        left = {name: seen for name, seen in self._splits.get(own, {}).items() if name != split}
        others = {one: names for one, names in self._splits.items() if one != own}
        self._splits = others if split is None else {**others, own: left}

    def read(self, location: Location) -> None:
        """Look at what is there: one listing, and one for each epoch, all at once."""
        # Names alone: a folder without a document is shown until somebody opens it.
        epochs = list_epochs(location)
        paths = map(layout.epoch_path, epochs)
        listed = together(location, [partial(location.names, path) for path in paths])
        self._splits = {
            epoch: {
                name: self.seen(epoch, name)
                for name in names
                if name != layout.DOCUMENT and not layout.is_leftover(name)
            }
            for epoch, names in zip(epochs, listed, strict=True)
        }


# One for all who open a place in this process, as long as one of them is there.
_known: WeakValueDictionary[Location, Catalogue] = WeakValueDictionary()
_lock = threading.Lock()


def catalogue_of(location: Location) -> Catalogue:
    """Return the one catalogue of a place in this process."""
    with _lock:
        known = _known.get(location)
        if known is None:
            known = _known[location] = Catalogue()
        return known


def list_epochs(location: Location) -> tuple[Epoch, ...]:
    """List the epochs that are there now, integers in order, then names: one listing."""
    epochs = []
    for name in location.names(""):
        with suppress(TrakStoreError):  # of other groups of the store, and files put there by hand
            if name != layout.DOCUMENT:
                epochs.append(layout.as_epoch(name))
    return tuple(sorted(epochs, key=layout.epoch_sort_key))


def list_splits(location: Location, epoch: Epoch) -> list[str]:
    """List the names of the splits that are at an epoch now."""
    names = [name for name in location.names(layout.epoch_path(epoch)) if name != layout.DOCUMENT]
    return [name for _, name in splits_there(location, [(epoch, name) for name in names])]


def not_found(
    location: Location, catalogue: Catalogue, epoch: Epoch, split: str | None = None
) -> NotFoundError:
    """Return the error for an epoch, or a split at it, that is not there, with the nearest name."""
    catalogue.read(location)
    if split is not None and layout.as_epoch(epoch) in catalogue.epochs:
        near = did_you_mean(split, list_splits(location, epoch))
        return NotFoundError(f"{location} has no split {split!r} at epoch {epoch}{near}")
    near = did_you_mean(epoch, catalogue.epochs)
    return NotFoundError(f"{location} has no epoch {epoch!r}{near}")


def splits_there(location: Location, pairs: Sequence[tuple[Epoch, str]]) -> list[tuple[Epoch, str]]:
    """Return those of some splits that have a document; names may be of files that belong elsewhere."""
    keys = [layout.document_key(layout.epoch_path(epoch), name) for epoch, name in pairs]
    documents = together(location, [partial(location.get, key) for key in keys])
    return [pair for pair, document in zip(pairs, documents, strict=True) if document is not None]


def open_epochs(
    location: Location,
    catalogue: Catalogue,
    epochs: Sequence[Epoch] | None,
    names: Sequence[str],
) -> dict[tuple[Epoch, str], Split | None]:
    """Open splits of some epochs, or of all that are there now; None for a split that is not there."""

    def opened(some: Sequence[Epoch]) -> dict[tuple[Epoch, str], Split | None]:
        pairs = [(layout.as_epoch(epoch), name) for epoch in some for name in names]
        return dict(zip(pairs, open_splits(location, pairs), strict=True))

    if epochs is not None:
        return opened(epochs)
    # Splits of the epochs that are known are opened while the epochs are listed: where a read is a
    # way to another machine, few epochs are ever new.
    known = catalogue.epochs
    now, splits = together(location, [partial(list_epochs, location), partial(opened, known)])
    splits |= opened([epoch for epoch in now if epoch not in known])
    return {(epoch, name): splits[epoch, name] for epoch in now for name in names}

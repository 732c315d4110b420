"""The names of epochs and splits of a store, as far as this process knows.

They are read when a store is opened, and updated by every change that this process makes. So showing a
store, or asking which names there are, reads nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias
from weakref import WeakValueDictionary

from trakstore.errors import NotFoundError, TrakStoreError, did_you_mean, error_context
from trakstore.spec import StoreSpec
from trakstore.storage import layout
from trakstore.storage.backends.location import Location
from trakstore.storage.backends.together import together
from trakstore.storage.layout import Epoch
from trakstore.storage.snapshots import open_splits
from trakstore.storage.split import Split, SplitStatus

_MaybeSplits: TypeAlias = dict[tuple[Epoch, str], Split | None]


@dataclass(frozen=True)
class Seen:
    """A split as it was when this process opened it last: its rows, and whether all were there."""

    rows: int
    complete: bool


class Catalogue:
    """Names of the splits of each epoch of one store, and what is known of each split."""

    def __init__(self, location: Location) -> None:
        self._location = location
        # Replaced as a whole and never changed, since other threads may be iterating over it.
        self._splits: dict[Epoch, dict[str, Seen | None]] = {}
        self._was_read = False

    @property
    def epochs(self) -> tuple[Epoch, ...]:
        """Epochs: integers in order, then names."""
        self._read_once()
        return tuple(sorted(self._splits, key=layout.epoch_sort_key))

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits of all epochs."""
        self._read_once()
        return tuple(sorted({name for names in self._splits.values() for name in names}))

    def _read_once(self) -> None:
        # A store that came from another process, or through another path, was not opened here.
        if not self._was_read:
            self.read()

    def splits_of(self, epoch: Epoch) -> tuple[str, ...]:
        """Return the names of the splits of one epoch."""
        return tuple(sorted(self._splits.get(layout.as_epoch(epoch), ())))

    def seen(self, epoch: Epoch, split: str) -> Seen | None:
        """Return a split as it was when it was opened; None for one that never was."""
        return self._splits.get(layout.as_epoch(epoch), {}).get(split)

    def add(self, epoch: Epoch, splits: Mapping[str, Seen | None]) -> None:
        """Add splits that were made or opened."""
        own = layout.as_epoch(epoch)
        self._splits = {**self._splits, own: {**self._splits.get(own, {}), **splits}}

    def remove(self, epoch: Epoch, split: str | None = None) -> None:
        """Remove dropped splits; a whole epoch if no ``split`` is given."""
        own = layout.as_epoch(epoch)
        left = {name: seen for name, seen in self._splits.get(own, {}).items() if name != split}
        others = {one: names for one, names in self._splits.items() if one != own}
        self._splits = others if split is None else {**others, own: left}

    def read(self) -> None:
        """List what there is: one listing of epochs, then one for each epoch, all at once."""
        # Only names are read: a folder without a document is shown until somebody opens it.
        epochs, names_in = self.list_epochs(), self._location.names
        paths = map(layout.epoch_path, epochs)
        listed = together(self._location, [partial(names_in, path) for path in paths])
        self._splits = {
            epoch: {
                name: self.seen(epoch, name)
                for name in names
                if name != layout.DOCUMENT and not layout.is_leftover(name)
            }
            for epoch, names in zip(epochs, listed, strict=True)
        }
        self._was_read = True

    def list_epochs(self) -> tuple[Epoch, ...]:
        """List the epochs that are there now, integers in order, then names: one listing."""
        epochs = []
        for name in self._location.names(""):
            with suppress(
                TrakStoreError
            ):  # of other groups of the store, and files put there by hand
                if name != layout.DOCUMENT:
                    epochs.append(layout.as_epoch(name))
        return tuple(sorted(epochs, key=layout.epoch_sort_key))

    def list_splits(self, epoch: Epoch) -> tuple[str, ...]:
        """List the names of the splits that are at an epoch now, and take them in."""
        listed = self._location.names(layout.epoch_path(epoch))
        there = self._there([(epoch, name) for name in listed if name != layout.DOCUMENT])
        if there:
            self.add(epoch, {name: self.seen(epoch, name) for _, name in there})
        return tuple(name for _, name in there)

    def epochs_of(self, names: Sequence[str]) -> tuple[Epoch, ...]:
        """Look again at what is there; return the epochs that have splits of all these names."""
        self.read()
        there = set(self._there([(epoch, name) for epoch in self.epochs for name in names]))
        return tuple(e for e in self.epochs if all((e, name) in there for name in names))

    def _there(self, pairs: Sequence[tuple[Epoch, str]]) -> list[tuple[Epoch, str]]:
        """Return the splits that have a document; names may be of files that belong elsewhere."""
        keys = [layout.document_key(layout.epoch_path(epoch), name) for epoch, name in pairs]
        documents = together(self._location, [partial(self._location.get, key) for key in keys])
        return [pair for pair, one in zip(pairs, documents, strict=True) if one is not None]

    def open(
        self, spec: StoreSpec, epochs: Sequence[Epoch] | None, names: Sequence[str]
    ) -> dict[Epoch, tuple[Split, ...]]:
        """Open splits as they are now: :meth:`~trakstore.storage.store.FeatureStore.open_splits`."""
        opened = self._open_now(names) if epochs is None else self._open(epochs, names)
        for (epoch, name), split in opened.items():
            if split is not None:
                with error_context(f"{self._location}: {name} at epoch {epoch}"):
                    split.spec.check_of(spec)
                self.add(epoch, {name: Seen(split.rows, split.complete)})
            elif epochs is not None:
                raise self.not_found(epoch, name)
        of_epoch = {epoch: [opened[epoch, name] for name in names] for epoch, _ in opened}
        return {epoch: tuple(filter(None, them)) for epoch, them in of_epoch.items() if all(them)}

    def open_named(self, spec: StoreSpec, epochs: Sequence[Epoch] | None, name: str) -> list[Split]:
        """Open the splits of a name as they are now; a :class:`NotFoundError` if no epoch has it."""
        opened = self.open(spec, epochs, (name,))
        if not opened:
            self.read()
            raise NotFoundError(f"no epoch has a split {name!r}{did_you_mean(name, self.splits)}")
        return [one for (one,) in opened.values()]

    def open_to_drop(self, epoch: Epoch, name: str) -> Split:
        """Open a split, even one that was copied here from another store: to delete it."""
        split = self._open((epoch,), (name,))[layout.as_epoch(epoch), name]
        if split is None:
            raise self.not_found(epoch, name)
        return split

    def _open(self, epochs: Sequence[Epoch], names: Sequence[str]) -> _MaybeSplits:
        pairs = [(layout.as_epoch(epoch), name) for epoch in epochs for name in names]
        return dict(zip(pairs, open_splits(self._location, pairs), strict=True))

    def _open_now(self, names: Sequence[str]) -> _MaybeSplits:
        """Open splits of all epochs that are there now."""
        # Splits of known epochs are opened while the epochs are being listed: reads may go to another
        # machine, and most epochs are known.
        known = self.epochs
        opening = partial(self._open, known, names)
        now, splits = together(self._location, [self.list_epochs, opening])
        splits |= self._open([epoch for epoch in now if epoch not in known], names)
        return {(epoch, name): splits[epoch, name] for epoch in now for name in names}

    def status(self) -> tuple[SplitStatus, ...]:
        """Look again at what is there; return what is missing, of each split at each epoch."""
        self.read()
        pairs = [(epoch, name) for epoch in self.epochs for name in self.splits_of(epoch)]
        splits = [split for split in open_splits(self._location, pairs) if split is not None]
        statuses = together(self._location, [split.status for split in splits])
        for one in statuses:
            self.add(one.epoch, {one.split: Seen(one.rows, one.complete)})
        return tuple(statuses)

    def not_found(self, epoch: Epoch, split: str | None = None) -> NotFoundError:
        """Return the error for an epoch, or a split at it, that is not there, with the nearest name."""
        self.read()
        if split is not None and layout.as_epoch(epoch) in self.epochs:
            near = did_you_mean(split, self.list_splits(epoch))
            return NotFoundError(f"{self._location} has no split {split!r} at epoch {epoch}{near}")
        near = did_you_mean(epoch, self.epochs)
        return NotFoundError(f"{self._location} has no epoch {epoch!r}{near}")


# One for everybody who opens a place in this process, as long as anybody uses it.
_known: WeakValueDictionary[Location, Catalogue] = WeakValueDictionary()
_lock = threading.Lock()


def catalogue_of(location: Location) -> Catalogue:
    """Return the one catalogue of a place in this process."""
    with _lock:
        known = _known.get(location)
        if known is None:
            known = _known[location] = Catalogue(location)
        return known

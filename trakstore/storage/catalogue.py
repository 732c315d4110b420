"""The names of epochs and splits of a store, as far as this process knows.

They are read when a store is opened, and kept up to date by all that this process does, so that to show
a store, or to ask what there is, reads nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from weakref import WeakValueDictionary

from trakstore.errors import TrakStoreError
from trakstore.storage import layout
from trakstore.storage.backends.location import Location
from trakstore.storage.backends.together import together
from trakstore.storage.layout import Epoch

__all__ = ["Catalogue", "Seen", "catalogue_of", "list_epochs"]


@dataclass(frozen=True)
class Seen:
    """A split as it was when this process opened it last: its rows, and whether all were there."""

    rows: int
    complete: bool


class Catalogue:
    """Names of the splits of each epoch of one store, and what was seen of them."""

    def __init__(self) -> None:
        self._splits: dict[Epoch, frozenset[str]] = {}
        self._seen: dict[tuple[Epoch, str], Seen] = {}

    @property
    def epochs(self) -> tuple[Epoch, ...]:
        """Integers in order, then names."""
        return tuple(sorted(self._splits, key=layout.epoch_sort_key))

    @property
    def splits(self) -> tuple[str, ...]:
        """Of all epochs."""
        return tuple(sorted(frozenset().union(*self._splits.values())))

    def splits_of(self, epoch: Epoch) -> tuple[str, ...]:
        """Of one epoch."""
        return tuple(sorted(self._splits.get(layout.as_epoch(epoch), ())))

    def see(self, epoch: Epoch, split: str, seen: Seen) -> None:
        """Take in what was opened."""
        if split not in self.splits_of(epoch):
            self.add(epoch, split)
        self._seen[layout.as_epoch(epoch), split] = seen

    def seen(self, epoch: Epoch, split: str) -> Seen | None:
        """A split as it was when it was opened; None for one that never was."""
        return self._seen.get((layout.as_epoch(epoch), split))

    def replace(self, splits: dict[Epoch, Iterable[str]]) -> None:
        """Take in what was read."""
        self._splits = {epoch: frozenset(names) for epoch, names in splits.items()}

    def add(self, epoch: Epoch, *splits: str) -> None:
        """Take in what was made."""
        own = layout.as_epoch(epoch)
        self._splits = {**self._splits, own: self._splits.get(own, frozenset()).union(splits)}

    def remove(self, epoch: Epoch, split: str | None = None) -> None:
        """Leave out what was dropped; a whole epoch without a ``split``."""
        own = layout.as_epoch(epoch)
        self._seen = {
            (at, name): seen
            for (at, name), seen in self._seen.items()
            if at != own or split not in (None, name)
        }
        left = dict(self._splits)
        if split is None:
            left.pop(own, None)
        elif own in left:
            left[own] = left[own] - {split}
        self._splits = left

    def read(self, location: Location) -> None:
        """Look at what is there: one listing, and one for each epoch, all at once."""
        epochs = list_epochs(location)
        calls: list[Callable[[], list[str]]] = [
            partial(location.names, layout.epoch_path(epoch)) for epoch in epochs
        ]
        found = together(location, calls)
        end = layout.DOCUMENT
        self.replace(
            {
                epoch: [name for name in names if name != end and not layout.is_leftover(name)]
                for epoch, names in zip(epochs, found, strict=True)
            }
        )


_known: WeakValueDictionary[Location, Catalogue] = WeakValueDictionary()
_lock = threading.Lock()


def catalogue_of(location: Location) -> Catalogue:
    """The one catalogue of a place in this process."""
    with _lock:
        found = _known.get(location)
        if found is not None:
            return found
        made = _known[location] = Catalogue()
        return made


def list_epochs(location: Location) -> tuple[Epoch, ...]:
    """The epochs that are there now, integers in order, then names: one listing."""
    found = [layout.as_epoch(name) for name in location.names("") if _is_epoch(name)]
    return tuple(sorted(found, key=layout.epoch_sort_key))


def _is_epoch(name: str) -> bool:
    check: Callable[[str], Epoch] = layout.as_epoch
    try:
        check(name)
    except TrakStoreError:
        return False
    return name != layout.DOCUMENT

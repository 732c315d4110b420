"""Stamp of what a service reads of a store: another one where that has changed since."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial

from trakstore.storage import layout
from trakstore.storage.backends.location import Location
from trakstore.storage.backends.together import together
from trakstore.storage.catalogue import catalogue_of
from trakstore.storage.layout import Epoch
from trakstore.storage.masks import mask_numbers


@dataclass(frozen=True)
class StoreStamp:
    """Reader of the documents by which a change of some splits is seen.

    Rows that are appended, and splits that are written or dropped, change a split's document; samples
    that are masked bring the next document of the mask. No row is read for it, and no commit record.

    Attributes
    ----------
    location : Location
    splits : tuple of str
        Names of the splits.
    epochs : tuple of epochs, optional
        None for all that are there.
    """

    location: Location
    splits: tuple[str, ...]
    epochs: tuple[Epoch, ...] | None = None

    def read(self) -> str:
        """Read the stamp as it is now: a request for each split at each epoch, and a few more."""
        epochs = catalogue_of(self.location).list_epochs() if self.epochs is None else self.epochs
        keys = [layout.DOCUMENT]
        keys += [
            layout.document_key(layout.epoch_path(epoch), name)
            for epoch in epochs
            for name in self.splits
        ]
        reads = [partial(self.location.get, key) for key in keys]
        masks = [partial(self._last_mask, name) for name in self.splits]
        read = together(self.location, [*reads, *masks])
        # Keys say which of the documents is which, where another epoch has come between.
        named = zip((*keys, *self.splits), read, strict=True)
        return hashlib.sha256(repr([*named]).encode()).hexdigest()

    def _last_mask(self, split: str) -> tuple[int, bytes | None]:
        path = layout.masks_path(split)
        last = max(mask_numbers(self.location.names(path)), default=0)
        # The folder comes before its document: the number alone would not tell when that is there.
        return last, self.location.get(layout.document_key(path, last)) if last else None

"""Stamp of the parts of a store that a service reads; it differs after a change."""

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
    """Reader of the documents that show a change of some splits.

    Appending, writing or dropping rows changes a split's document, and masking samples adds a document
    to the mask. No rows or commit records are read.

    Attributes
    ----------
    location : Location
    splits : tuple of str
        Names of the splits.
    epochs : tuple of epochs, optional
        Epochs of the splits; None for all that exist.
    """

    location: Location
    splits: tuple[str, ...]
    epochs: tuple[Epoch, ...] | None = None

    def read(self) -> str:
        """Read the present stamp: a request for each split at each epoch, and a few more."""
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
        # The keys identify the documents, even if another epoch has come between.
        named = zip((*keys, *self.splits), read, strict=True)
        return hashlib.sha256(repr([*named]).encode()).hexdigest()

    def _last_mask(self, split: str) -> tuple[int, bytes | None]:
        path = layout.masks_path(split)
        last = max(mask_numbers(self.location.names(path)), default=0)
        # The folder appears before its document: the number alone does not show that the document
        # exists.
        return last, self.location.get(layout.document_key(path, last)) if last else None

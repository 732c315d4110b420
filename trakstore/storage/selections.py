"""Epochs or splits of a store, as people name them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from trakstore.errors import TrakStoreError
from trakstore.quantities import is_whole, shown
from trakstore.storage.layout import Epoch, as_epoch


def as_epochs(epochs: Epoch | Iterable[Epoch]) -> tuple[Epoch, ...]:
    """Return given epochs as a tuple; a single one may be given by itself.

    Raises
    ------
    TrakStoreError
        For none at all: a check of no epochs would report that all is well.

    Examples
    --------
    >>> as_epochs(3), as_epochs(["final", "4"])
    ((3,), ('final', 4))
    """
    if isinstance(epochs, str) or is_whole(epochs) or not isinstance(epochs, Iterable):
        return (as_epoch(cast("Epoch", epochs)),)
    chosen = tuple(map(as_epoch, epochs))
    if not chosen:
        raise TrakStoreError(f"epochs must be some epochs, each named once, got {shown(epochs)}")
    return chosen


def as_splits(splits: str | Iterable[str]) -> tuple[str, ...]:
    """Return given names of splits as a tuple; a single one may be given by itself.

    Raises
    ------
    TrakStoreError
        For no names, or anything but a sequence of them.

    Examples
    --------
    >>> as_splits("train"), as_splits(["train", "test"])
    (('train',), ('train', 'test'))
    """
    if isinstance(splits, str):
        return (splits,)
    chosen = tuple(splits) if isinstance(splits, Iterable) else ()
    if not chosen or not all(isinstance(one, str) for one in chosen):
        raise TrakStoreError(
            f"splits must be names of splits, or None for all, got {shown(splits)}"
        )
    return chosen

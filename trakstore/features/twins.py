"""Epochs that have the same weights, which is rarely meant."""

from __future__ import annotations

import logging
from contextlib import suppress

from trakstore.errors import NotFoundError
from trakstore.storage.layout import Epoch, epoch_sort_key
from trakstore.storage.opening import open_store
from trakstore.storage.split import Split

__all__ = ["say_twins", "warn_of_twins"]

log = logging.getLogger("trakstore")

# Epochs on each side that are compared. Each costs a read, and a run of many epochs begins with this.
_NEAR = 32


def warn_of_twins(split: Split, named: set[frozenset[Epoch]]) -> None:
    """Say in the log that another epoch of the store has the weights of this one.

    Parameters
    ----------
    split : Split
        Split of the epoch; for a complete one, the comparison was made when it was begun.
    named : set of pairs of epochs
        Pairs that were reported before; those that are reported here are added.
    """
    if split.spec.checkpoint is None or split.status().complete:
        return
    for epoch in _twins(split):
        pair = frozenset((epoch, split.epoch))
        if pair not in named:
            named.add(pair)
            say_twins(epoch, split.epoch, split.spec.checkpoint)


def say_twins(one: Epoch, other: Epoch, weights: str) -> None:
    """Say in the log that two epochs have the same weights."""
    log.warning(
        "epochs %s and %s have the same weights (%s): are they two checkpoints, or one that was given "
        "twice?",
        *(one, other, weights[:12]),
    )


def _twins(split: Split) -> list[Epoch]:
    store, twins = open_store(split.location), []
    epochs = sorted({*store.epochs, split.epoch}, key=epoch_sort_key)
    here = epochs.index(split.epoch)
    for epoch in epochs[max(0, here - _NEAR) : here + 1 + _NEAR]:
        with suppress(NotFoundError):  # an epoch without this split
            other = store.split(epoch, split.name)
            if epoch != split.epoch and other.spec.checkpoint == split.spec.checkpoint:
                twins.append(epoch)
    return twins

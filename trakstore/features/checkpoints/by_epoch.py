"""Epochs of checkpoints, named as the store names them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trakstore.errors import TrakStoreError
from trakstore.features.checkpoints.formats import Checkpoint
from trakstore.storage.layout import as_epoch


def by_epoch(checkpoints: Mapping[Any, Checkpoint]) -> Mapping[int | str, Checkpoint]:
    """Name weights by epochs as the store does; a mapping that has such names is not read.

    Raises
    ------
    TrakStoreError
        When there are none, or an epoch has two names.
    """
    if not checkpoints:
        raise TrakStoreError(
            "checkpoints is an empty mapping, and a job needs weights of one epoch at least: give "
            "{epoch: weights}, or leave checkpoints out to take the model's own weights as epoch 0"
        )
    epochs = {epoch: as_epoch(epoch) for epoch in checkpoints}
    # A mapping that has the store's names is left alone: its values may be read when asked for.
    if all(type(epoch) is type(given) for given, epoch in epochs.items()):
        return checkpoints
    if len(set(epochs.values())) < len(epochs):
        raise TrakStoreError(f"checkpoints name an epoch twice: {', '.join(map(repr, epochs))}")
    return {epoch: checkpoints[given] for given, epoch in epochs.items()}

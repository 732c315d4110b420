"""Epochs of checkpoints, named as the store names them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trakstore.errors import NotFoundError, TrakStoreError
from trakstore.features.checkpoints.formats import Checkpoint, weights_file
from trakstore.paths import exists
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


def need_files(checkpoints: Mapping[int | str, Checkpoint], epochs: Sequence[int | str]) -> None:
    """Raise unless the files of some epochs' weights are there.

    Raises
    ------
    NotFoundError
        When one is not.
    """
    paths = {
        epoch: Path(where)
        for epoch in epochs
        if isinstance(where := checkpoints.get(epoch), str | Path)
    }
    missing = [f"{path} of epoch {epoch}" for epoch, path in paths.items() if not exists(path)]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise NotFoundError(
            f"there is no checkpoint file {', '.join(missing[:5])}{more}; correct the job's "
            f"checkpoints, or choose the epochs whose files are there"
        )
    for path in paths.values():
        weights_file(path)  # refuses a folder that holds none

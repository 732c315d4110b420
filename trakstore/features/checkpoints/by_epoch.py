"""Epochs of checkpoints, named as the store names them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from trakstore.errors import NotFoundError, TrakStoreError
from trakstore.features.checkpoints.formats import Checkpoint, weights_file
from trakstore.paths import exists
from trakstore.quantities import shown
from trakstore.storage.layout import as_epoch


def by_epoch(checkpoints: Mapping[Any, Checkpoint]) -> Mapping[int | str, Checkpoint]:
    """Name weights by epochs as the store does; a mapping with such names is returned unread.

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


def need_epochs(checkpoints: object) -> None:
    """Raise a :class:`TrakStoreError` for a list of weights, which has no epochs, or for none."""
    if isinstance(checkpoints, list | tuple):
        raise TrakStoreError(
            f"checkpoints must be a mapping, like {{10: weights}}, or a Trainer's folder, got a "
            f"{type(checkpoints).__name__} of {len(checkpoints)}: name the epoch of each, or number "
            f"them by dict(enumerate(checkpoints))"
        )
    # A mapping that reads weights when asked need not be one of collections.abc.
    if checkpoints is not None and not hasattr(checkpoints, "keys"):
        raise TrakStoreError(
            f"checkpoints must be a mapping, like {{10: weights}}, or a Trainer's folder, got "
            f"{shown(checkpoints)}"
        )


def need_files(
    checkpoints: Mapping[int | str, Checkpoint], epochs: Sequence[int | str], job: str = ""
) -> None:
    """Raise unless the files of some epochs' weights are there.

    Parameters
    ----------
    checkpoints : mapping of epoch to weights
    epochs : sequence of epochs
        Those whose files are needed.
    job : str
        Name of the job, such as ``folder/jobs.py:digits``. The error says so if a file lies beside
        ``jobs.py``.

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
    missing = {epoch: path for epoch, path in paths.items() if not exists(path)}
    if missing:
        first = [f"{path} of epoch {epoch}" for epoch, path in islice(missing.items(), 5)]
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise NotFoundError(
            f"there is no checkpoint file {', '.join(first)}{more}; correct the job's "
            f"checkpoints, or choose the epochs whose files are there"
            f"{_place_looked_at(next(iter(missing.values())), job)}"
        )
    for path in paths.values():
        weights_file(path)  # refuses a folder that holds none


def _place_looked_at(path: Path, job: str) -> str:
    """Say where a relative path was looked for, and the folder of the job's file if it is there."""
    if path.is_absolute():
        return ""
    place = f" (looked at {path.absolute()})"
    file = Path(job.rpartition(":")[0])
    if file.suffix == ".py" and exists(file.parent / path):
        return f"{place}; it is beside {file.name}: run from {file.parent.resolve()}"
    return place

"""Checkpoints of a model in any form: models, state dicts, or paths."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from torch import Tensor, nn

from trakstore.errors import TrakStoreError
from trakstore.features.weights import own_copy
from trakstore.storage.layout import Epoch, as_epoch

ModelCheckpoint: TypeAlias = nn.Module | Mapping[str, Tensor] | str | Path
ModelCheckpoints: TypeAlias = Mapping[Epoch, ModelCheckpoint] | Sequence[ModelCheckpoint]


def by_epoch(given: ModelCheckpoints) -> dict[Epoch, ModelCheckpoint]:
    """Return checkpoints by epoch; those of a list are the epochs 0, 1, 2, ...

    Raises
    ------
    TrakStoreError
        For a single checkpoint instead of several.
    """
    one = isinstance(given, nn.Module) and not isinstance(given, nn.ModuleList)
    if isinstance(given, Mapping) and any(isinstance(value, Tensor) for value in given.values()):
        one = True  # a state dict
    if one or isinstance(given, str | Path) or not isinstance(given, Iterable):
        raise TrakStoreError(
            f"checkpoints are several: a list of models, state dicts or paths, or a mapping of epochs "
            f"to these; got one {type(given).__name__}"
        )
    named = given.items() if isinstance(given, Mapping) else enumerate(given)
    return {as_epoch(epoch): checkpoint for epoch, checkpoint in named}


def model_of(checkpoints: Mapping[Epoch, ModelCheckpoint], model: nn.Module | None) -> nn.Module:
    """Return the model into which weights are loaded: the given one, or a copy of a checkpoint.

    Raises
    ------
    TrakStoreError
        When there is none.
    """
    if model is not None:
        return model
    for one in checkpoints.values():
        if isinstance(one, nn.Module):
            return own_copy(one)  # so that no checkpoint is changed
    raise TrakStoreError("checkpoints that are state dicts or paths need model=, which takes them")

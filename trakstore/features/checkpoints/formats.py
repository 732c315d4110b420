"""Stored weights from a path, a state dict or a function, whatever their format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from trakstore.errors import NotFoundError, TrakStoreError
from trakstore.features.checkpoints.distributed_folder import METADATA, DistributedFolder
from trakstore.features.checkpoints.plain_tensors import plain_tensors
from trakstore.features.checkpoints.safetensors_file import SafetensorsFile
from trakstore.features.checkpoints.shards import Shards
from trakstore.features.checkpoints.stored_weights import StoredWeights
from trakstore.features.checkpoints.torch_file import state_dicts_within, torch_file
from trakstore.paths import is_file, is_folder

# A path of a file or folder, a state dict, or a function without arguments that gives either.
Checkpoint = str | Path | Mapping[str, Tensor] | Callable[[], Any]

_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
_WEIGHTS = (
    *("model.safetensors.index.json", "model.safetensors"),
    *("pytorch_model.bin.index.json", "pytorch_model.bin"),
    METADATA,
)
_FSDP = "pytorch_model_fsdp_0"  # the folder within a Trainer's checkpoint that FSDP's ranks write


def opened(checkpoint: Checkpoint, where: str = "the checkpoint") -> list[StoredWeights]:
    """Open the weights of a checkpoint, whatever wrote it.

    Parameters
    ----------
    checkpoint : path, mapping of str to Tensor, or callable
        A file of safetensors or of ``torch.save``, an index of shards, a folder that
        ``save_pretrained``, a Trainer, PEFT or ``torch.distributed.checkpoint`` wrote, a state dict,
        or a function that gives one of these.
    where : str
        Where the weights lie, for messages about what is no file.

    Returns
    -------
    State dicts found there; a file of ``torch.save`` may hold several.
        State dicts that lie there. A file of ``torch.save`` may hold several.

    Raises
    ------
    NotFoundError
        When nothing is there.
    TrakStoreError
        When it is not of these formats, or holds code.
    """
    if isinstance(checkpoint, str | Path):
        path = weights_file(Path(checkpoint))
        with plain_tensors(path):
            return _of_file(path)
    if isinstance(checkpoint, Mapping):
        return [*state_dicts_within(checkpoint, where)]
    if isinstance(checkpoint, nn.Module):
        raise TrakStoreError(
            f"{where} is a module, {type(checkpoint).__name__}, which training may change: give its "
            f"weights, as model.state_dict() copied, or a path"
        )
    if callable(checkpoint):
        return opened(checkpoint(), where)
    raise TrakStoreError(
        f"{where} needed a path, a mapping of names to tensors or a function that gives one, got a "
        f"{type(checkpoint).__name__}"
    )


def weights_file(path: Path) -> Path:
    """Return the file that holds or lists the weights at a path: the path itself, or a file in it.

    Raises
    ------
    NotFoundError
        When there is none.
    """
    if is_file(path):
        return path
    if not is_folder(path):
        raise NotFoundError(f"there is no checkpoint file or folder {path}")
    # An adapter's folder may hold its base too: the adapter is the part that was trained.
    for name in (*_ADAPTERS, *_WEIGHTS, f"{_FSDP}/{METADATA}"):
        if is_file(path / name):
            return path / name
    held = ", ".join(sorted(one.name for one in path.iterdir())[:8]) or "nothing"
    raise NotFoundError(
        f"the folder {path} holds no weights that are known ({', '.join((*_WEIGHTS, *_ADAPTERS))}), "
        f"but {held}; name the file"
    )


def _of_file(path: Path) -> list[StoredWeights]:
    if path.name == METADATA:
        return [DistributedFolder(path.parent)]
    if path.name.endswith(".index.json"):
        return [Shards(path)]
    if path.suffix == ".safetensors":
        return [SafetensorsFile(path)]
    state: Any = torch_file(path)
    if not isinstance(state, Mapping):
        raise TrakStoreError(
            f"{path} holds a {type(state).__name__}, not a mapping of names to tensors; save "
            f"model.state_dict()"
        )
    return [*state_dicts_within(state, str(path))]

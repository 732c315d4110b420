"""Second moments that Adam kept, from the file of its state beside a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trakstore.errors import NotFoundError, TrakStoreError
from trakstore.features.checkpoints.distributed_folder import METADATA, DistributedFolder
from trakstore.features.checkpoints.plain_tensors import plain_tensors
from trakstore.features.checkpoints.torch_file import torch_file
from trakstore.features.parameters import canonical_name
from trakstore.paths import is_file, is_folder

__all__ = ["adam_moments", "optimizer_file"]

_FILE, _MOMENTS = "optimizer.pt", "exp_avg_sq"
# Folders in which accelerate keeps the shards of an optimizer's state under FSDP.
_FOLDERS = ("optimizer_0", "optimizer")
_SHARDED = re.compile(rf"(?:.*\.)?state\.(?P<name>.+)\.{_MOMENTS}")
# Parts of the names of parameters that transformers' Trainer does not decay.
_NOT_DECAYED = ("bias", "norm", "ln_")


def optimizer_file(checkpoint: object) -> Path:
    """Return the file of the optimizer's state in a checkpoint's folder, or the folder of its shards.

    Raises
    ------
    NotFoundError
        When the checkpoint is no folder, or has none.
    """
    if isinstance(checkpoint, str | Path) and is_folder(Path(checkpoint)):
        file, *folders = (Path(checkpoint) / name for name in (_FILE, *_FOLDERS))
        if is_file(file):
            return file
        sharded = [one for one in folders if is_file(one / METADATA)]
        if sharded:
            return sharded[0]
    got = checkpoint if isinstance(checkpoint, str | Path) else f"a {type(checkpoint).__name__}"
    raise NotFoundError(
        f"scale='adam' needs a checkpoint's folder with {_FILE}, as a Trainer writes it without "
        f"save_only_model, got {got}: give scale= the path of such a file, or a mapping of parameter "
        f"names to second moments"
    )


def adam_moments(path: Path, model: nn.Module) -> Mapping[str, Tensor]:
    """Read the second moments of a model's parameters from the file of Adam's state.

    The file numbers the parameters. Names come from the file's own ``param_names`` where it has them,
    else from the order of the model's parameters, or from the order in which a Trainer deals them to
    two groups.

    Parameters
    ----------
    path : Path
        File written by ``torch.save(optimizer.state_dict(), path)``, or folder written by
        ``torch.distributed.checkpoint``, in which parameters have names.
    model : nn.Module
        Model that was trained.

    Returns
    -------
    mapping of canonical name to Tensor
        Second moments in the parameters' shapes. Those of a folder stay on the disk until each is used:
        together they are as large as the model, which may be too large for one process.

    Raises
    ------
    NotFoundError
        When there is no such file.
    TrakStoreError
        When it holds no state of Adam, or one of other parameters.
    """
    if is_file(path / METADATA):
        return _sharded_moments(path, model)
    if not is_file(path):
        raise NotFoundError(f"there is no file {path} of an optimizer's state")
    with plain_tensors(path):
        stored = torch_file(path)
    groups, state = _parts(stored, path)
    moments = [_moment(state.get(number), path) for group in groups for number in group["params"]]
    for names in _orders(groups, model):
        shapes = dict(_trainable(model))
        if len(names) == len(moments) and all(
            one is None or tuple(one.shape) == shapes[name]
            for name, one in zip(names, moments, strict=True)
        ):
            named = zip(names, moments, strict=True)
            return {
                canonical_name(name): torch.zeros(shapes[name]) if one is None else one
                for name, one in named
            }
    raise TrakStoreError(
        f"{path} has the state of {len(moments)} parameters, which are not the "
        f"{len(_trainable(model))} of the model that require gradients, in any order that is known: "
        f"give scale= a mapping of parameter names to second moments"
    )


class _ReadWhenAsked(Mapping[str, Tensor]):
    """Tensors of a folder, each of which is read when asked for.

    Parameters
    ----------
    folder : DistributedFolder
    keys : mapping of str to str
        Names in the folder by the names of the parameters.
    """

    def __init__(self, folder: DistributedFolder, keys: Mapping[str, str]) -> None:
        self._folder, self._keys = folder, keys

    def __getitem__(self, name: str) -> Tensor:
        key = self._keys[name]
        with plain_tensors(self._folder.where):
            return self._folder.read([key])[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


def _sharded_moments(path: Path, model: nn.Module) -> Mapping[str, Tensor]:
    with plain_tensors(path):
        folder = DistributedFolder(path)
        keys = {
            canonical_name(match["name"]): key
            for key in folder.shapes()
            if (match := _SHARDED.fullmatch(key))
        }
        wanted = [canonical_name(name) for name, _ in _trainable(model)]
        missing = [name for name in wanted if name not in keys]
        if missing:
            raise TrakStoreError(
                f"{path} has no {_MOMENTS} of {missing[0]!r}; it has {sorted(keys)[:5]}: use "
                f"scale='samples', or give a mapping of parameter names to second moments"
            )
    return _ReadWhenAsked(folder, {name: keys[name] for name in wanted})


def _parts(stored: Any, path: Path) -> tuple[Sequence[Mapping[str, Any]], Mapping[Any, Any]]:
    if isinstance(stored, Mapping) and isinstance(stored.get("state"), Mapping):
        groups = stored.get("param_groups")
        if isinstance(groups, list) and all(isinstance(one, Mapping) for one in groups):
            return groups, stored["state"]
    raise TrakStoreError(f"{path} is not the state of an optimizer of torch")


def _moment(state: Any, path: Path) -> Tensor | None:
    if state is None:
        return None  # a parameter that never had a gradient
    moment = state.get(_MOMENTS) if isinstance(state, Mapping) else None
    if isinstance(moment, Tensor):
        return moment
    has = ", ".join(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
    raise TrakStoreError(
        f"{path} has no {_MOMENTS}, Adam's second moments, it has {has}: use scale='samples', or give "
        f"a mapping of parameter names to second moments"
    )


def _trainable(model: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(p.shape)) for name, p in model.named_parameters() if p.requires_grad]


def _orders(groups: Sequence[Mapping[str, Any]], model: nn.Module) -> Iterator[list[str]]:
    """Yield possible orders in which the optimizer was given its parameters."""
    own = [name for group in groups for name in group.get("param_names", ())]
    names = [name for name, _ in _trainable(model)]
    by_canonical = {canonical_name(name): name for name in names}
    if own and all(canonical_name(name) in by_canonical for name in own):
        yield [by_canonical[canonical_name(name)] for name in own]
        return
    if len(groups) == 1:
        yield names
        return
    for decayed in _decayed(model):
        yield [n for n in names if n in decayed] + [n for n in names if n not in decayed]


def _decayed(model: nn.Module) -> Iterator[set[str]]:
    """Yield guesses of which parameters a Trainer decays; they come first in its order."""
    try:
        from transformers import Trainer
    except ImportError:
        pass
    else:
        yield set(Trainer.get_decay_parameter_names(None, model))  # type: ignore[arg-type]
    names = [name for name, _ in _trainable(model)]
    yield {name for name in names if not any(part in name.lower() for part in _NOT_DECAYED)}

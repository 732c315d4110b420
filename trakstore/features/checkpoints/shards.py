"""Weights in several files, with an index of which file holds which tensor."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trakstore.errors import NotFoundError, TrakStoreError
from trakstore.features.checkpoints.safetensors_file import SafetensorsFile
from trakstore.features.checkpoints.stored_weights import (
    WHOLE_TENSORS,
    Parts,
    Shape,
    StoredWeights,
    WeightsInMemory,
)
from trakstore.features.checkpoints.torch_file import torch_file
from trakstore.paths import is_file


class Shards(StoredWeights):
    """Files that ``model.safetensors.index.json`` or ``pytorch_model.bin.index.json`` lists."""

    def __init__(self, index: Path) -> None:
        self.where = str(index)
        self.files = _files(index)
        self._shapes: dict[str, Shape | None] = {}
        for path in dict.fromkeys(self.files.values()):
            shapes = _shard(path).shapes()
            listed = [name for name, file in self.files.items() if file == path]
            if lost := [name for name in listed if name not in shapes]:
                raise TrakStoreError(
                    f"{index} says that {path.name} holds {lost[0]}, which it does not"
                )
            self._shapes |= {name: shapes[name] for name in listed}

    def shapes(self) -> Mapping[str, Shape | None]:
        return self._shapes

    def read(self, names: Sequence[str], parts: Parts = WHOLE_TENSORS) -> dict[str, Any]:
        tensors: dict[str, Any] = {}
        for path in dict.fromkeys(self.files[name] for name in names):
            own = [name for name in names if self.files[name] == path]
            tensors |= _shard(path).read(own, parts)
        return tensors


def _shard(path: Path) -> StoredWeights:
    if path.suffix == ".safetensors":
        return SafetensorsFile(path)
    return WeightsInMemory(torch_file(path), str(path))


def _files(index: Path) -> dict[str, Path]:
    """The file of each tensor, in the order of the files, which lie beside the index."""
    try:
        listed = json.loads(index.read_text("utf-8"))["weight_map"]
        files = {str(name): Path(str(file)) for name, file in listed.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise TrakStoreError(
            f"{index} is no index of shards: it needs a weight_map of names to files"
        ) from None
    for file in files.values():
        if file.name != str(file):  # a store that somebody sends must not point elsewhere
            raise TrakStoreError(f"{index} names {str(file)!r}, which is not a file beside it")
    missing = sorted({str(file) for file in files.values() if not is_file(index.parent / file)})
    if missing:
        raise NotFoundError(f"{index} names {', '.join(missing[:5])}, which is not there")
    ordered = sorted(files, key=lambda name: str(files[name]))
    return {name: index.parent / files[name] for name in ordered}

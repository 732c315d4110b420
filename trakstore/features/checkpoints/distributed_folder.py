"""Weights in a folder that ``torch.distributed.checkpoint`` wrote, as FSDP's trainers do."""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trakstore.errors import TrakStoreError
from trakstore.features.checkpoints.stored_weights import (
    WHOLE_TENSORS,
    Parts,
    Shape,
    StoredWeights,
)
from trakstore.features.sharding import Part

if TYPE_CHECKING:  # importing it takes a second, which most folders do not need
    from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

METADATA = ".metadata"


class DistributedFolder(StoredWeights):
    """Tensors that several ranks wrote; one process reads them, whatever the number of ranks was."""

    def __init__(self, path: Path) -> None:
        from torch.distributed.checkpoint.metadata import StorageMeta

        self.path, self.where = path, str(path)
        with (path / METADATA).open("rb") as file:
            self._metadata: Metadata = _PlainUnpickler(file).load()
        for stored in (self._metadata.storage_data or {}).values():
            file_name = str(stored.relative_path)
            if Path(file_name).name != file_name:  # as in an index of shards
                raise TrakStoreError(f"{path} names {file_name!r}, which is not a file within it")
        for name, one in self._tensors().items():
            if sum(math.prod(chunk.sizes) for chunk in one.chunks) != math.prod(one.size):
                raise TrakStoreError(
                    f"{path} does not hold all of {name}: some ranks did not write theirs"
                )
        self._metadata.storage_meta = self._metadata.storage_meta or StorageMeta()

    def shapes(self) -> Mapping[str, Shape | None]:
        return {name: tuple(one.size) for name, one in self._tensors().items()}

    def _tensors(self) -> dict[str, TensorStorageMetadata]:
        from torch.distributed.checkpoint.metadata import TensorStorageMetadata

        described = self._metadata.state_dict_metadata.items()
        return {name: one for name, one in described if isinstance(one, TensorStorageMetadata)}

    def read(self, names: Sequence[str], parts: Parts = WHOLE_TENSORS) -> dict[str, Tensor]:
        from torch.distributed.checkpoint.filesystem import FileSystemReader

        from trakstore.features.checkpoints.parts_planner import PartsPlanner

        # `dcp.load` would be a collective operation in a process group, but ranks that featurize never
        # wait for one another: its steps are taken here for this process alone.
        described = self._tensors()
        whole = {name: tuple(slice(0, size) for size in described[name].size) for name in names}
        wanted: dict[str, Part] = {name: parts.get(name, whole[name]) for name in names}
        state: dict[str, Any] = {
            name: torch.empty(
                [one.stop - one.start for one in part], dtype=described[name].properties.dtype
            )
            for name, part in wanted.items()
        }
        reader, planner = FileSystemReader(self.path), PartsPlanner(described, wanted)
        reader.set_up_storage_reader(self._metadata, is_coordinator=True)
        planner.set_up_planner(state, self._metadata, is_coordinator=True)
        plan = reader.prepare_local_plan(planner.create_local_plan())
        reader.read_data(plan, planner).wait()
        return state


class _PlainUnpickler(pickle.Unpickler):
    """Unpickler of the folder's table of contents that runs no code from the file."""

    def find_class(self, module: str, name: str) -> Any:
        module = _OLD_NAMES.get(module, module)
        if "." not in name:  # a dotted name would reach other modules through this one
            found = super().find_class(module, name) if module.split(".")[0] in _PACKAGES else None
            own_class = isinstance(found, type) and found.__module__ == _METADATA_MODULE
            if own_class or isinstance(found, torch.dtype) or (module, name) in _NAMES:
                return found
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name} is not of a checkpoint's metadata")


_METADATA_MODULE = "torch.distributed.checkpoint.metadata"
_PACKAGES = ("torch", "collections", "pathlib")
_PATHS = ("PosixPath", "WindowsPath")
_NAMES = {
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.distributed.checkpoint.filesystem", "_StoragePrefix"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("collections", "OrderedDict"),
    *(("pathlib", name) for name in _PATHS),
}
_OLD_NAMES = {"pathlib._local": "pathlib"}  # which Python 3.13 writes

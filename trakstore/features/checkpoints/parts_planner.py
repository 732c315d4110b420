"""Plan to read parts of tensors that ``torch.distributed.checkpoint`` stored, chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from trakstore.features.sharding import Part

__all__ = ["PartsPlanner"]


class PartsPlanner(DefaultLoadPlanner):
    """A plan to read parts of tensors, each into a tensor of its own.

    Parameters
    ----------
    stored : mapping of name to TensorStorageMetadata
        Tensors of the folder.
    parts : mapping of name to Part
        Parts of these tensors to read.
    """

    def __init__(
        self, stored: Mapping[str, TensorStorageMetadata], parts: Mapping[str, Part]
    ) -> None:
        super().__init__()
        self._stored, self._parts = stored, parts

    def create_local_plan(self) -> LoadPlan:
        """List the chunks that overlap the parts, and the piece of each that is needed."""
        return LoadPlan([item for name in self._parts for item in self._items(name)])

    def _items(self, name: str) -> Iterator[ReadItem]:
        part = self._parts[name]
        start, stop = (torch.Size(getattr(one, end) for one in part) for end in ("start", "stop"))
        sizes = torch.Size(last - first for first, last in zip(start, stop, strict=True))
        if 0 not in sizes:  # a rank may have no row of a short tensor
            wanted = ChunkStorageMetadata(start, sizes)
            yield from create_read_items_for_chunk_list(name, self._stored[name], [wanted])

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        """Return the memory of a part, where torch expects that of a whole tensor, and would refuse."""
        memory: Tensor = self.state_dict[index.fqn]
        return memory

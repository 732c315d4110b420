"""Weights in a safetensors file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from trakstore.features.checkpoints.stored_weights import (
    WHOLE_TENSORS,
    Parts,
    Shape,
    StoredWeights,
)


class SafetensorsFile(StoredWeights):
    """A file that ``safetensors.torch.save_file`` wrote, by itself or as one of several shards."""

    def __init__(self, path: Path) -> None:
        self.path, self.where = path, str(path)
        with safe_open(path, "pt") as opened:
            names: list[str] = opened.keys()
            self._shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in names}

    def shapes(self) -> Mapping[str, Shape | None]:
        return self._shapes

    def read(self, names: Sequence[str], parts: Parts = WHOLE_TENSORS) -> dict[str, Tensor]:
        # The file is mapped into memory while it is open, and what was read of it counts as memory of
        # the process: it is opened anew for each piece.
        with safe_open(self.path, "pt") as opened:
            return {
                name: opened.get_slice(name)[parts[name]]
                if name in parts
                else opened.get_tensor(name)
                for name in names
            }

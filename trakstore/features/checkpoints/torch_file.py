"""Weights in a file that ``torch.save`` wrote."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trakstore.features.checkpoints.stored_weights import WeightsInMemory


def torch_file(path: Path) -> Mapping[str, Any]:
    """Load a file without running its code; tensors stay on the disk until they are used."""
    # Files from before torch 1.6 are no zip archives, and cannot be mapped.
    mapped = zipfile.is_zipfile(path)
    state: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    return state


def state_dicts_within(state: Mapping[str, Any], where: str) -> list[WeightsInMemory]:
    """List the state dicts of a file: the whole, and each mapping in it that holds tensors.

    Training loops and Lightning keep weights beside an optimiser's state, under a name of their own.
    """
    parts = {
        name: part
        for name, part in state.items()
        if isinstance(part, Mapping) and any(isinstance(one, Tensor) for one in part.values())
    }
    below = [WeightsInMemory(part, f"{where}[{name!r}]") for name, part in parts.items()]
    return [WeightsInMemory(state, where), *below]

"""Forward passes of a model that follow the places of samples, and do nothing else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trakstore.features.axes import Following
from trakstore.features.outputs import ModelOutput, RowOutputs
from trakstore.features.quantised import hidden_products
from trakstore.features.recording import Recorder
from trakstore.features.sharding import WHOLE, Sharding

__all__ = ["FollowedPass"]


class FollowedPass:
    """Forward passes of one model.

    Parameters
    ----------
    model : nn.Module
    sharding : Sharding
        Spread of the model over ranks.

    Attributes
    ----------
    scripted : bool
        Whether the model has TorchScript modules, inside which samples cannot be followed.
    """

    def __init__(self, model: nn.Module, sharding: Sharding = WHOLE) -> None:
        self._model, self._sharding = model, sharding
        parameters = (one for same in sharding.groups(model) for one in same)
        self._kept = frozenset(id(one) for one in (*parameters, *model.buffers()))
        self._products = tuple(hidden_products(model))
        self.scripted = any(isinstance(one, torch.jit.ScriptModule) for one in model.modules())

    def following(self, size: int) -> Following:
        """Return the places of so many samples, before a pass."""
        return Following(size, self._kept)

    def outputs(self, output: ModelOutput, batch: Any, following: Following) -> RowOutputs:
        """Compute outputs of a batch, whose samples are followed."""
        recorder = Recorder({}, _as_it_is, following, self._products, self._sharding)
        return recorder.outputs(output, self._model, batch)


def _as_it_is(_key: Any, _layer: Any, _call: Any, output: Tensor, _mark: Any) -> Tensor:
    return output

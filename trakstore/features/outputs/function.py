"""A user's own output as one function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trakstore.errors import TrakStoreError
from trakstore.features.outputs.base import Model, ModelOutput, RowOutputs
from trakstore.spec import OutputSpec

__all__ = ["FunctionOutput"]


@dataclass(frozen=True)
class FunctionOutput(ModelOutput):
    """What ``function(model, batch)`` gives: a loss of each sample, or :class:`RowOutputs`.

    A plain tensor of shape ``(batch,)`` is taken as output and loss in one.
    """

    function: Callable[[Model, Any], Tensor | RowOutputs]
    name = "function"

    @property
    def spec(self) -> OutputSpec:
        """The function's own name: another function is another output."""
        return OutputSpec("function", (("function", self.function.__qualname__),))

    def __call__(self, model: Model, batch: Any) -> RowOutputs:
        """See :meth:`ModelOutput.__call__`."""
        found = self.function(model, batch)
        if isinstance(found, Tensor):
            return RowOutputs(found, found, -torch.ones_like(found))
        return RowOutputs(*found)

    def check(self, model: Model, batch: Any) -> int | None:
        """One number, or three, for each sample."""
        size = len(torch.utils._pytree.tree_leaves(batch)[0])
        with torch.no_grad():
            found = self(model, batch)
        shapes = [tuple(getattr(one, "shape", ())) for one in found]
        if shapes != [(size,)] * 3:
            raise TrakStoreError(
                f"an output function gives one tensor of shape ({size},), or RowOutputs of three; "
                f"{self.function.__qualname__} gives {shapes}"
            )
        return None

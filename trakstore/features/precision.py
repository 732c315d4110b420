"""Mixed precision on request: bfloat16 where torch's autocast says so, else float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as tree

from trakstore.features.outputs import ModelOutput, RowOutputs
from trakstore.features.outputs.base import Model
from trakstore.spec import OutputSpec

__all__ = ["Autocast"]


class Autocast(ModelOutput):
    """An output of the model under autocast; what is made of the model's answer is float32.

    Parameters
    ----------
    output : ModelOutput
    device : torch.device
        Where the model is.
    dtype : torch.dtype
        Of products in the model, and so of the gradients that go back through them.
    """

    def __init__(
        self, output: ModelOutput, device: torch.device, dtype: torch.dtype = torch.bfloat16
    ) -> None:
        self.output, self.device, self.dtype = output, device, dtype
        self.calls_alone = output.calls_alone

    @property
    def spec(self) -> OutputSpec:
        """The output's; the precision has its own place in the store."""
        return self.output.spec

    def __call__(self, model: Model, batch: Any) -> RowOutputs:
        """See :class:`ModelOutput`."""

        def cast(*args: Any, **kwargs: Any) -> Any:
            # weights may be other tensors at every call, as under vmap: none is kept
            with torch.autocast(self.device.type, self.dtype, cache_enabled=False):
                answer = model(*args, **kwargs)
            return tree.tree_map(_widened, answer)

        return self.output(cast, batch)

    def labels(self, batch: Any) -> Tensor | None:
        """See :class:`ModelOutput`."""
        return self.output.labels(batch)

    def predictions(self, model: Model, batch: Any) -> Tensor | None:
        """See :class:`ModelOutput`."""
        return self.output.predictions(model, batch)

    def check(self, model: Model, batch: Any) -> int | None:
        """See :class:`ModelOutput`."""
        return self.output.check(model, batch)


def _widened(leaf: Any) -> Any:
    return leaf.float() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

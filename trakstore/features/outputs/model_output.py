"""Model outputs: the scalar of a sample whose gradient becomes a feature.

An output comes with its loss l and ``out_to_loss`` = -dl/d(output), so that a loss gradient is
``-out_to_loss`` times the stored one, and one store serves methods of both kinds.
"""

# Annotations are not postponed: a postponed one of a named tuple is a name that only this module knows.
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from trakstore.errors import TrakStoreError
from trakstore.spec import OutputSpec

__all__ = ["Model", "ModelOutput", "RowOutputs", "label_key", "need_tensor", "widened"]

Model: TypeAlias = Callable[..., Any]


class RowOutputs(NamedTuple):
    """Of each sample of a batch, tensors of shape ``(batch,)``."""

    output: Tensor
    loss: Tensor
    out_to_loss: Tensor


class ModelOutput(ABC):
    """A differentiable scalar of each sample."""

    name: str
    dtype: torch.dtype | None = None  # of the model's products, where it is not its parameters'
    calls_alone = False  # whether it uses the model by calling it, and by nothing else

    @property
    def spec(self) -> OutputSpec:
        """What is stored of it."""
        return OutputSpec(self.name)

    @abstractmethod
    def __call__(self, model: Model, batch: Any) -> RowOutputs:
        """Outputs of a batch, each a function of its own sample alone.

        Parameters
        ----------
        model : callable
            The model, or the model with other parameters.
        batch : tree of Tensor
            What the data set's samples collate to; every tensor has the batch dimension first.
        """

    def labels(self, batch: Any) -> Tensor | None:  # noqa: ARG002
        """Classes to store as the ``label`` column, shape ``(batch,)``, or None."""
        return None

    def predictions(self, model: Model, batch: Any) -> Tensor | None:  # noqa: ARG002
        """Classes that the model says, shape ``(batch,)``, or None where there are none."""
        return None

    def check(self, model: Model, batch: Any) -> int | None:  # noqa: ARG002
        """Raise a :class:`TrakStoreError` if this batch cannot have this output.

        Returns
        -------
        int or None
            Number of classes, where labels are classes: every label must be below it.
        """
        return None


def label_key(batch: Any) -> str | None:
    """The key of a dict batch that is to be predicted: ``labels``, else ``label``, if there is one."""
    if not isinstance(batch, Mapping):
        return None
    return next((key for key in ("labels", "label") if key in batch), None)


def need_tensor(value: Any, what: str) -> Tensor:
    """``value``, if it is a tensor."""
    if isinstance(value, Tensor):
        return value
    raise TrakStoreError(
        f"{what} must be a tensor, got {type(value).__name__}; rows of tensors of one length give one"
    )


def widened(tensor: Tensor) -> Tensor:
    """As float32 where it is less: float64 stays."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()

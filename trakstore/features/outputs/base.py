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

__all__ = ["Model", "ModelOutput", "RowOutputs", "log_odds", "logits_of", "need_tensor"]

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


def log_odds(loss: Tensor) -> RowOutputs:
    """The log-odds log(p / (1 - p)) of samples of probability p = exp(-loss).

    The loss is again a function of them: loss = log(1 + exp(-output)), ``out_to_loss`` = 1 - p.
    For one label of many it is the margin of TRAK (Park et al., 2023, section 3.2); for sequences and
    pairs it is the same of their probability.
    """
    rest = -torch.expm1(-loss)
    return RowOutputs(-loss - rest.log(), loss, rest)


def logits_of(model: Model, inputs: Any) -> Any:
    """The model's answer to a tuple of arguments or a dict of keywords; ``.logits`` where it has it."""
    answer = model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)
    return getattr(answer, "logits", answer)


def need_tensor(value: Any, what: str) -> Tensor:
    """``value``, if it is a tensor."""
    if isinstance(value, Tensor):
        return value
    raise TrakStoreError(f"{what} must be a tensor, got {type(value).__name__}")

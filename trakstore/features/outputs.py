"""Model outputs: the scalar of a sample whose gradient becomes a feature.

An output comes with its loss l = l(output) and ``out_to_loss`` = -dl/d(output), so that a loss
gradient is ``-out_to_loss`` times the stored one, and one store serves methods of both kinds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from trakstore.errors import NotFoundError, TrakStoreError, did_you_mean
from trakstore.spec import OutputSpec

__all__ = ["CrossEntropy", "Margin", "ModelOutput", "RowOutputs", "as_output"]


class RowOutputs(NamedTuple):
    """Of each sample of a batch, tensors of shape ``(batch,)``."""

    output: Tensor
    loss: Tensor
    out_to_loss: Tensor


class ModelOutput(ABC):
    """A differentiable scalar of each sample."""

    name: str

    @property
    def spec(self) -> OutputSpec:
        """What is stored of it."""
        return OutputSpec(self.name)

    @abstractmethod
    def __call__(self, model: Callable[..., Any], batch: Any) -> RowOutputs:
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

    def check(self, model: Callable[..., Any], batch: Any) -> int | None:  # noqa: ARG002
        """Raise a :class:`TrakStoreError` if this batch cannot have this output.

        Returns
        -------
        int or None
            Number of classes, where labels are classes: every label must be below it.
        """
        return None


@dataclass(frozen=True)
class _Classification(ModelOutput):
    """A model that gives logits ``(batch, classes)`` from the first entries of a tuple batch."""

    def labels(self, batch: Any) -> Tensor:
        """The last entry of the batch."""
        _, label = _inputs_and_label(batch)
        return label.reshape(-1)

    def check(self, model: Callable[..., Any], batch: Any) -> int | None:
        """Logits must be ``(batch, classes)``, labels integers from 0 to classes - 1."""
        inputs, label = _inputs_and_label(batch)
        if label.is_floating_point() or label.ndim != 1:
            raise TrakStoreError(
                f"{self.name} needs integer labels of shape (batch,), "
                f"got {tuple(label.shape)} of {label.dtype}"
            )
        with torch.no_grad():
            logits = model(*inputs)
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        fits = isinstance(logits, Tensor) and logits.ndim == 2 and len(logits) == len(label)
        if not fits or logits.shape[1] < 2:
            raise TrakStoreError(
                f"{self.name} needs a model that gives logits of shape ({len(label)}, classes) "
                f"with 2 classes or more, got {shape}"
            )
        return int(logits.shape[1])

    def _logits(self, model: Callable[..., Any], batch: Any) -> tuple[Tensor, Tensor]:
        inputs, label = _inputs_and_label(batch)
        logits = model(*inputs).float()
        own = torch.arange(logits.shape[1], device=logits.device) == label[:, None]
        return logits, own


class Margin(_Classification):
    """Logit of the own class minus log-sum-exp of the others (TRAK's multi-class output).

    With p the own class's probability, output = log(p / (1 - p)), loss = -log p and
    ``out_to_loss`` = 1 - p. Source: Park et al. (2023), TRAK, section 3.2.
    """

    name = "margin"

    def __call__(self, model: Callable[..., Any], batch: Any) -> RowOutputs:
        """See :meth:`ModelOutput.__call__`."""
        logits, own = self._logits(model, batch)
        others = logits.masked_fill(own, -torch.inf).logsumexp(dim=1)
        margin = logits.masked_fill(~own, 0).sum(dim=1) - others
        return RowOutputs(margin, F.softplus(-margin), torch.sigmoid(-margin))


class CrossEntropy(_Classification):
    """The loss itself: output = loss = -log p, hence ``out_to_loss`` = -1."""

    name = "cross_entropy"

    def __call__(self, model: Callable[..., Any], batch: Any) -> RowOutputs:
        """See :meth:`ModelOutput.__call__`."""
        logits, own = self._logits(model, batch)
        loss = logits.logsumexp(dim=1) - logits.masked_fill(~own, 0).sum(dim=1)
        return RowOutputs(loss, loss, -torch.ones_like(loss))


_OUTPUTS: dict[str, type[ModelOutput]] = {one.name: one for one in (Margin, CrossEntropy)}


def as_output(output: str | ModelOutput) -> ModelOutput:
    """An output from its name.

    Raises
    ------
    NotFoundError
        With the nearest name.
    """
    if isinstance(output, ModelOutput):
        return output
    if output not in _OUTPUTS:
        raise NotFoundError(f"there is no output {output!r}{did_you_mean(output, _OUTPUTS)}")
    return _OUTPUTS[output]()


def _inputs_and_label(batch: Any) -> tuple[tuple[Any, ...], Tensor]:
    if not isinstance(batch, tuple | list) or len(batch) < 2 or not isinstance(batch[-1], Tensor):
        raise TrakStoreError(
            f"classification needs samples (input, ..., label), got a {type(batch).__name__}"
        )
    return tuple(batch[:-1]), batch[-1]

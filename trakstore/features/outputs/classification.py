"""One label of several classes: the margin of TRAK, and the cross entropy."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trakstore.errors import TrakStoreError
from trakstore.features.outputs.model_output import (
    Model,
    ModelOutput,
    RowOutputs,
    inputs_and_target,
    logits_of,
    need_keywords,
    with_target,
)
from trakstore.features.outputs.odds import precise, rounded, shortfall
from trakstore.features.outputs.predicted_classes import PredictsClasses

__all__ = ["CrossEntropy", "Margin"]


class _Classification(ModelOutput, PredictsClasses):
    """A model that gives logits ``(batch, classes)``, or an object that has them as ``.logits``.

    Batches are ``(input, ..., label)``, or dicts with ``labels`` (or ``label``) beside the model's
    keywords.
    """

    calls_alone = True
    columns = frozenset({"label", "labels"})
    averaged = False  # there is one position

    def labels(self, batch: Any) -> Tensor:
        """Return the last entry of the batch, or its ``labels``."""
        return _taken_apart(batch)[1].reshape(-1)

    def predictions(self, model: Model, batch: Any) -> Tensor:
        """Return the class of the largest logit."""
        logits: Tensor = logits_of(model, _taken_apart(batch)[0])
        return logits.argmax(dim=1)

    def counted(self, model: Model, batch: Any) -> Tensor:  # noqa: ARG002
        """See :meth:`PredictsClasses.counted`: each sample has one label."""
        label = _taken_apart(batch)[1].reshape(-1, 1)
        return torch.ones_like(label, dtype=torch.bool)

    def predicted(self, model: Model, batch: Any) -> Tensor:
        """See :meth:`PredictsClasses.predicted`."""
        logits: Tensor = logits_of(model, _taken_apart(batch)[0])
        return logits[:, None]

    def relabelled(self, model: Model, batch: Any, labels: Tensor) -> Any:  # noqa: ARG002
        """See :meth:`PredictsClasses.relabelled`."""
        own = _taken_apart(batch)[1]
        return with_target(batch, labels.reshape(own.shape).to(own.dtype))

    def check(self, model: Model, batch: Any) -> int | None:
        """Raise unless logits are ``(batch, classes)`` and labels integers; return the classes."""
        inputs, label = _taken_apart(batch)
        if label.is_floating_point() or label.ndim != 1:
            raise TrakStoreError(
                f"{self.name} needs integer labels of shape (batch,), "
                f"got {tuple(label.shape)} of {label.dtype}{_of_other_labels(label)}"
            )
        need_keywords(model, inputs)
        logits = logits_of(model, inputs)
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        fits = isinstance(logits, Tensor) and logits.ndim == 2 and len(logits) == len(label)
        if not fits or logits.shape[1] < 2:
            raise TrakStoreError(
                f"{self.name} needs a model that gives logits of shape ({len(label)}, classes) "
                f"with 2 classes or more, got {shape}{_instead(shape)}"
            )
        return int(logits.shape[1])

    def _shortfall(self, model: Model, batch: Any) -> tuple[Tensor, torch.dtype]:
        """Return log((1 - p)/p) of the label, NaN where it is no class; and the logits' dtype."""
        inputs, label = _taken_apart(batch)
        logits = logits_of(model, inputs)
        # A label that is no class, such as 0.7, cannot be looked up: the nearest class stands in, and
        # the row is NaN.
        nearest = label.long().clamp(0, logits.shape[1] - 1)
        x = shortfall(precise(logits), nearest)
        return x.masked_fill(nearest != label, torch.nan), logits.dtype


_TOKENS = "; a language model is asked by output='causal_lm' or 'masked_lm'"


# The binary cross entropy is softplus(-x), of which the margin log(p / (1 - p)) is x itself.
_ONE_NUMBER = (
    "; one number a sample is asked by output='squared_error' where it is a regression's; where it is "
    "the logit z of one class of two, with labels y of 0 and 1, give output= a function of model and "
    "batch that returns RowOutputs(x, softplus(-x), sigmoid(-x)) of x = (2 * y - 1) * z"
)


def _of_other_labels(label: Tensor) -> str:
    """Words on the output that labels of another kind have."""
    if label.is_floating_point() and label.numel() == len(label):
        return _ONE_NUMBER
    return _TOKENS if label.ndim == 2 else ""


def _instead(shape: Any) -> str:
    """Words on the output that logits of another shape have."""
    if isinstance(shape, tuple) and len(shape) == 3:
        return _TOKENS
    if isinstance(shape, tuple) and (len(shape) == 1 or shape[-1] == 1):
        return _ONE_NUMBER
    return ""


class Margin(_Classification):
    """Logit of the own class minus log-sum-exp of the others (TRAK's multi-class output).

    With p the own class's probability, output = log(p / (1 - p)), loss = -log p and
    ``out_to_loss`` = 1 - p. Source: Park et al. (2023), TRAK, section 3.2.

    Examples
    --------
    >>> rows = Margin()(model, (torch.eye(4), torch.tensor([0, 1, 2, 0])))
    >>> rows.output.shape, torch.allclose(rows.out_to_loss, torch.sigmoid(-rows.output))
    (torch.Size([4]), True)
    """

    name = "margin"

    def __call__(self, model: Model, batch: Any) -> RowOutputs:
        """See :meth:`ModelOutput.__call__`."""
        x, dtype = self._shortfall(model, batch)
        return rounded(RowOutputs(-x, F.softplus(x), torch.sigmoid(x)), dtype)


class CrossEntropy(_Classification):
    """The loss itself: output = loss = -log p, hence ``out_to_loss`` = -1.

    Examples
    --------
    >>> rows = CrossEntropy()(model, (torch.eye(4), torch.tensor([0, 1, 2, 0])))
    >>> rows.out_to_loss
    tensor([-1., -1., -1., -1.])
    """

    name = "cross_entropy"

    def __call__(self, model: Model, batch: Any) -> RowOutputs:
        """See :meth:`ModelOutput.__call__`."""
        x, dtype = self._shortfall(model, batch)
        loss = F.softplus(x)
        return rounded(RowOutputs(loss, loss, -torch.ones_like(loss)), dtype)


def _taken_apart(batch: Any) -> tuple[Any, Tensor]:
    return inputs_and_target(batch, "classification", "label")

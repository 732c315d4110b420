"""Measures of the samples of a training batch, from their classes and logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from trakstore.errors import TrakStoreError
from trakstore.quantities import shown
from trakstore.storage.tables.training_records import MEASURES

__all__ = ["MARGIN", "RIGHT", "measure_batch", "need_classes"]

RIGHT, MARGIN = MEASURES.index("correct"), MEASURES.index("margin")


def measure_batch(targets: Any, logits: Any, losses: Any = None) -> Tensor:
    """Compute loss, confidence, correctness, margin and EL2N of each sample.

    This never waits for a GPU: a target there that is no class makes its correctness NaN, for which
    :func:`need_classes` looks once the measures are on the CPU.

    Parameters
    ----------
    targets : Tensor or array of integers, shape (batch,)
        Classes of the samples.
    logits : Tensor or array, shape (batch, classes)
    losses : Tensor or array, shape (batch,) or (batch, 1), optional
        Loss of each sample; the cross-entropy where None, or where the loss is a mean of shape ().

    Returns
    -------
    Tensor, shape (batch, 5), float32
        On the device of the logits, in memory of its own.

    Raises
    ------
    TrakStoreError
        For other shapes, or targets that are no classes.
    """
    targets, logits = _tensor(targets, "targets"), _tensor(logits, "logits")
    _need_shapes(targets, logits)
    classes = logits.shape[1]
    if not targets.is_cuda and len(targets):
        _need_range(targets, classes)
    targets, logits = targets.to(logits.device).long(), logits.float()
    # As an index out of range, a target would put the GPU in an error state for good.
    known = (targets >= 0) & (targets < classes)
    targets = targets.clamp(0, classes - 1)
    own = logits.gather(1, targets[:, None])[:, 0]
    others = logits.scatter(1, targets[:, None], -torch.inf)
    margin = own - others.amax(1)
    log_p = own - logits.logsumexp(1)
    # EL2N is the norm of the loss's gradient by the logits.
    el2n = (logits.softmax(1) - F.one_hot(targets, classes)).norm(dim=1)
    # If a logit is NaN, argmax returns its position, which would count as a prediction.
    right = ((logits.argmax(1) == targets) & ~margin.isnan()).float()
    columns = [_losses(losses, -log_p), log_p.exp(), right.where(known, torch.nan), margin, el2n]
    return torch.stack(columns, dim=1)


def need_classes(measures: Tensor, epochs: NDArray[np.int64]) -> None:
    """Refuse measures of samples whose targets are no classes, naming the epochs; waits for the CPU."""
    bad = np.flatnonzero(measures[:, RIGHT].isnan().numpy())
    if len(bad):
        raise TrakStoreError(
            f"{len(bad)} targets, the first at epoch {epochs[bad[0]]}, are none of the classes that "
            f"there are logits of: leave samples without a class out"
        )


def _tensor(given: Any, name: str) -> Tensor:
    try:
        return torch.as_tensor(given).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TrakStoreError(f"{name} must be a tensor or an array, got {shown(given)}") from error


def _need_shapes(targets: Tensor, logits: Tensor) -> None:
    if logits.ndim != 2 or targets.shape != logits.shape[:1]:
        raise TrakStoreError(
            f"needed logits (batch, classes) and targets (batch,), got {tuple(logits.shape)} and "
            f"{tuple(targets.shape)}"
        )
    if logits.shape[1] < 2:
        raise TrakStoreError(
            "needed logits of 2 classes or more, got 1: for a single logit z of the class 1 give "
            "torch.cat([torch.zeros_like(z), z], 1)"
        )
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise TrakStoreError(
            f"targets must be integers, classes from 0 to {logits.shape[1] - 1}, got {targets.dtype}: "
            f"give targets.long() if they are"
        )


def _need_range(targets: Tensor, classes: int) -> None:
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= classes:
        raise TrakStoreError(
            f"targets must be classes from 0 to {classes - 1}, as there are logits of {classes}, got "
            f"{low if low < 0 else high}: leave samples without a class out"
        )


def _losses(given: Any, cross_entropy: Tensor) -> Tensor:
    """Return losses of shape (batch,); a mean is replaced by the cross-entropy of each sample."""
    if given is None:
        return cross_entropy
    losses, batch = _tensor(given, "losses"), len(cross_entropy)
    if losses.ndim == 0:
        return cross_entropy
    if losses.shape not in ((batch,), (batch, 1)):
        raise TrakStoreError(
            f"losses must have the shape ({batch},), one for each sample, or be their mean, got "
            f'{tuple(losses.shape)}: compute them with reduction="none"'
        )
    return losses.to(cross_entropy.device).reshape(batch).float()

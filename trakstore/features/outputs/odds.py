"""Log-odds from logits, in log space: right for losses of 1e-30 as for those of 1,000.

With p the probability of what is right, x = log((1 - p)/p) is the log-sum-exp of the other logits minus
the own one, and the loss -log p = softplus(x). A loss that was rounded has lost 1 - p; x has not.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trakstore.features.outputs.model_output import RowOutputs

__all__ = ["log_losses", "log_odds", "outside", "precise", "rounded", "shortfall"]

_TINY = -37.0  # log softplus(x) is x, and log(expm1(exp(x))) too, to the last digit of a float64


def precise(tensor: Tensor) -> Tensor:
    """As float64, of which there are few: numbers of tokens, not of the vocabulary."""
    return tensor.float() if tensor.device.type == "mps" else tensor.double()  # it has no float64


def rounded(rows: RowOutputs, dtype: torch.dtype) -> RowOutputs:
    """In the dtype of the logits, float32 at least."""
    wide = torch.promote_types(dtype, torch.float32)
    return RowOutputs(*(column.to(wide) for column in rows))


def shortfall(logits: Tensor, labels: Tensor) -> Tensor:
    """log((1 - p)/p) of one class of many: log-sum-exp of the other logits minus the own one.

    Parameters
    ----------
    logits : Tensor, shape (..., classes)
        Float32 or float64.
    labels : Tensor of integers, shape (...)
        Classes, all of them.

    Returns
    -------
    Tensor of float64, shape (...)
    """
    at = labels.long().unsqueeze(-1)
    own, others = logits.gather(-1, at).squeeze(-1), logits.scatter(-1, at, -torch.inf)
    if logits.dtype == torch.float64:
        return others.logsumexp(-1) - own
    # the largest is subtracted first, from a copy that is ours: what is left is hardly rounded
    top = others.detach().amax(-1, keepdim=True)
    rest = precise(others.sub_(top).logsumexp(-1))
    return rest + (precise(top.squeeze(-1)) - precise(own))


def outside(labels: Tensor, classes: int) -> Tensor:
    """Where labels are no class."""
    return labels.long().clamp(0, classes - 1) != labels


def log_losses(x: Tensor) -> Tensor:
    """Logarithms of the losses softplus(x)."""
    near = x.clamp(min=_TINY)  # each branch of a ``where`` must have a gradient that is finite
    return torch.where(x < _TINY, x, F.softplus(near).log())


def log_odds(log_loss: Tensor) -> RowOutputs:
    """The log-odds log(p / (1 - p)) of samples of probability p = exp(-loss).

    The loss is again a function of them: loss = log(1 + exp(-output)), ``out_to_loss`` = 1 - p.
    For one label of many it is the margin of TRAK (Park et al., 2023, section 3.2); for sequences and
    pairs it is the same of their probability.
    """
    loss, near = log_loss.exp(), log_loss.clamp(min=_TINY).exp()
    odds = -near - torch.log(-torch.expm1(-near))
    odds = torch.where(log_loss < _TINY, -log_loss, odds)
    return RowOutputs(odds, loss, -torch.expm1(-loss))

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

# Below this, log softplus(x) is x, and log(expm1(exp(x))) too, to the last digit of a float64.
_TINY = -37.0


def precise(tensor: Tensor) -> Tensor:
    """Return a tensor as float64; on a device without it, as float32."""
    # Only numbers of tokens are ever widened, never of the whole vocabulary.
    return tensor.float() if tensor.device.type == "mps" else tensor.double()


def rounded(rows: RowOutputs, dtype: torch.dtype) -> RowOutputs:
    """Return outputs in the dtype of the logits, float32 at least."""
    wide = torch.promote_types(dtype, torch.float32)
    return RowOutputs(*(column.to(wide) for column in rows))


def shortfall(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute log((1 - p)/p) of one class: log-sum-exp of the other logits minus its own.

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
    # Float32 logits would have to be widened for a float64 log-sum-exp, the whole vocabulary of them.
    # Instead the largest is subtracted first, from a copy that is ours. What is left is a number from 0
    # to the logarithm of the classes, which float32 hardly rounds, and only such are widened.
    top = others.detach().amax(-1, keepdim=True)
    rest = precise(others.sub_(top).logsumexp(-1))
    return rest + (precise(top.squeeze(-1)) - precise(own))


def outside(labels: Tensor, classes: int) -> Tensor:
    """Tell which labels are no class."""
    return labels.long().clamp(0, classes - 1) != labels


def log_losses(x: Tensor) -> Tensor:
    """Compute logarithms of the losses softplus(x)."""
    # Each branch of a ``where`` must have a finite gradient, also where the other is taken: 0 times an
    # infinite one would be NaN.
    near = x.clamp(min=_TINY)
    return torch.where(x < _TINY, x, F.softplus(near).log())


def log_odds(log_loss: Tensor) -> RowOutputs:
    """Compute log-odds log(p / (1 - p)) of samples of probability p = exp(-loss).

    The loss is again a function of them: loss = log(1 + exp(-output)), ``out_to_loss`` = 1 - p.
    For one label of many it is the margin of TRAK (Park et al., 2023, section 3.2); for sequences and
    pairs it is the same of their probability.
    """
    loss, near = log_loss.exp(), log_loss.clamp(min=_TINY).exp()
    odds = -near - torch.log(-torch.expm1(-near))
    odds = torch.where(log_loss < _TINY, -log_loss, odds)
    return RowOutputs(odds, loss, -torch.expm1(-loss))

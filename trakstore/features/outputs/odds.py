"""Log-odds from logits, in log space: as exact for losses of 1e-30 as for those of 1,000.

With p the probability of the right class, x = log((1 - p)/p) is the log-sum-exp of the other logits
minus its own, and the loss is -log p = softplus(x). A rounded loss no longer shows a small 1 - p; x
does.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trakstore.features.outputs.model_output import RowOutputs

__all__ = ["log_losses", "log_odds", "outside", "precise", "rounded", "shortfall"]

# Below this, log softplus(x) and log(expm1(exp(x))) equal x to the last digit of a float64.
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
    # A float64 log-sum-exp would widen the float32 logits of the whole vocabulary. Instead the largest
    # is subtracted first, in our own copy. The log-sum-exp is then between 0 and the logarithm of the
    # classes, where float32 rounds little, and only this number is widened.
    top = others.detach().amax(-1, keepdim=True)
    rest = precise(others.sub_(top).logsumexp(-1))
    return rest + (precise(top.squeeze(-1)) - precise(own))


def outside(labels: Tensor, classes: int) -> Tensor:
    """Tell which labels are no class."""
    return labels.long().clamp(0, classes - 1) != labels


def log_losses(x: Tensor) -> Tensor:
    """Compute logarithms of the losses softplus(x)."""
    # Both branches of a ``where`` need finite gradients everywhere: for the branch not taken, 0 times
    # infinity would be NaN.
    near = x.clamp(min=_TINY)
    return torch.where(x < _TINY, x, F.softplus(near).log())


def log_odds(log_loss: Tensor) -> RowOutputs:
    """Compute log-odds log(p / (1 - p)) of samples of probability p = exp(-loss).

    The loss is a function of them: loss = log(1 + exp(-output)), with ``out_to_loss`` = 1 - p. For one
    label of many they are the margin of TRAK (Park et al., 2023, section 3.2); for sequences and pairs,
    the same with their probability.
    """
    loss, near = log_loss.exp(), log_loss.clamp(min=_TINY).exp()
    odds = -near - torch.log(-torch.expm1(-near))
    odds = torch.where(log_loss < _TINY, -log_loss, odds)
    return RowOutputs(odds, loss, -torch.expm1(-loss))

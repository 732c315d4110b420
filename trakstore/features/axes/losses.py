"""Losses of single entries, as ``reduction="none"`` gives them; others mix the samples."""

from __future__ import annotations

from torch import Tensor

from trakstore.features.axes.asked import Asked, Rule, aligned
from trakstore.features.axes.marks import Axis, Mark, Unplaced

__all__ = ["RULES"]

FREE, LOST = Unplaced.FREE, Unplaced.LOST


def _apart(asked: Asked) -> bool:
    return asked.kwargs.get("reduction") == "none" and isinstance(asked.out, Tensor)


def _entries(asked: Asked) -> Mark:
    """Mark of a loss of each entry of a prediction and its target."""
    if not _apart(asked):
        return LOST
    return aligned([(asked.of(t), t.shape) for t in asked.tensors], asked.result.shape)


def _classes(asked: Asked) -> Mark:
    """Mark of a loss over classes, the second dimension, which goes away."""
    mark, target = asked.of(asked.first), asked.argument(1, "target")
    others = [t for t in asked.tensors[1:] if t is not target]
    if not _apart(asked) or asked.first.ndim < 2 or any(asked.of(t) is not FREE for t in others):
        return LOST
    own = asked.of(target)
    if not isinstance(mark, Axis):
        return LOST if own is not FREE else mark
    if mark.dim == 1:
        return LOST
    place = Axis(mark.dim - (mark.dim > 1), *mark[1:])
    same = mark if target.ndim == asked.first.ndim else place  # of probabilities, or of classes
    return place if own in (FREE, same) else LOST


_ENTRIES = """
mse_loss l1_loss smooth_l1_loss huber_loss binary_cross_entropy binary_cross_entropy_with_logits
kl_div poisson_nll_loss gaussian_nll_loss soft_margin_loss
"""
RULES: dict[str, Rule] = {
    **dict.fromkeys(_ENTRIES.split(), _entries),
    **dict.fromkeys(("cross_entropy", "nll_loss"), _classes),
}

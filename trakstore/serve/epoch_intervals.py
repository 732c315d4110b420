"""Scores of each epoch alone, and intervals of their mean."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from trakstore.scores.factored import Scores

_RESAMPLES = 2000
Interval: TypeAlias = tuple[float | None, float | None]


def scores_by_epoch(scores: Scores, columns: NDArray[np.int64]) -> NDArray[np.float32] | None:
    """Return scores of one target with some train rows, (epochs, columns); None for one epoch."""
    if len(scores.epochs) < 2 or not len(columns):
        return None
    some = scores.isel(train=columns)
    return np.stack([some.epoch(one).block(0, 1, 0, len(columns))[0] for one in scores.epochs])


def intervals(scores: Scores, each: NDArray[np.float32] | None) -> list[Interval]:
    """Return 95% bootstrap intervals of (weighted) means over epochs, for each column of ``each``.

    Return None if a score is not the mean of its epochs' scores, or there are fewer than three.
    """
    if each is None:
        return []
    if len(each) < 3 or scores.reduce != "mean" or scores.scale_apart is not None:
        return [(None, None)] * each.shape[1]
    # A fixed seed, so that the same question gets the same answer.
    drawn = np.random.default_rng(0).integers(len(each), size=(_RESAMPLES, len(each)))
    counts = np.stack([(drawn == epoch).mean(axis=1) for epoch in range(len(each))], axis=1)
    counts *= scores.shares
    counts /= counts.sum(axis=1, keepdims=True)
    ends = np.quantile(counts @ each.astype(np.float64), [0.025, 0.975], axis=0)
    return [(float(low), float(high)) for low, high in ends.T]

"""Soft thresholds for each target: the spread of its scores with most train samples.

Most train samples have next to nothing to do with a target, so that the median of the absolute scores
shows the size of noise, from the projection and the kernel. A threshold of that size keeps few scores,
and removes the noise from the sum of many scores that predicts a subset's effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from trakstore.scores.parts import Window

# Places in the train split, and rows at each: neighbours are often of one kind, and share a chunk. The
# median of 4,096 absolute values is off by 2% of itself.
PLACES, ROWS = 64, 64
# Median of the absolute value of a standard normal number.
NORMAL_MEDIAN = 0.6745
# Targets at once: 16 MB of scores.
TARGETS = 1024


def sampled_rows(count: int) -> range | NDArray[np.int64]:
    """Return the train rows, ascending, that give the thresholds: all where they are few."""
    if count <= PLACES * ROWS:
        return range(count)
    starts = np.linspace(0, count - ROWS, PLACES).astype(np.int64)
    return (starts[:, None] + np.arange(ROWS)).ravel()


def own_thresholds(window: Window) -> NDArray[np.float32]:
    """Compute median |τ| / 0.6745 for each target, shape (w,), from all scores of a window."""
    targets, rows = len(window.lefts[0]), window.trains[0].shape[0]
    out = np.empty(targets, np.float32)
    for low in range(0, targets, TARGETS):
        some = window.of_targets(low, low + TARGETS)
        with some.reading(_tiles(rows)):
            tiles = [some.tile(*tile) for tile in _tiles(rows)]
        middle = np.median(np.abs(np.concatenate(tiles, axis=1)), axis=1)
        out[low : low + TARGETS] = middle / np.float32(NORMAL_MEDIAN)
    return out


def _tiles(rows: int) -> Sequence[tuple[int, int]]:
    return [(low, min(low + ROWS, rows)) for low in range(0, rows, ROWS)]

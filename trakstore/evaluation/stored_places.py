"""Places of the scores' samples among the stored rows, which models are trained on and asked about."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trakstore.passes.rows import Rows, count_below, whole_column
from trakstore.scores.factored import Scores
from trakstore.scores.windows import Matrix


@dataclass(frozen=True, eq=False)
class Places:
    """Places of one side's samples among the rows of its stored split.

    Subsets and outputs of models count all stored rows, as a data set does; scores have no masked ones.

    Attributes
    ----------
    positions : ndarray of int64, shape (n,)
        Position in the stored split of each sample of the scores.
    rows : int
        Number of stored rows.
    """

    positions: NDArray[np.int64]
    rows: int

    @property
    def left_out(self) -> NDArray[np.int64]:
        """Positions of the stored rows that the scores do not have, ascending."""
        return np.delete(np.arange(self.rows), self.positions)

    @property
    def widths(self) -> tuple[int, ...]:
        """Numbers of columns that an array may have: one per stored row, or one per sample."""
        return tuple(dict.fromkeys((self.rows, len(self.positions))))

    def columns(self, width: int) -> NDArray[np.int64] | None:
        """Return the samples' columns in an array of ``width`` columns; None for other widths."""
        if width == self.rows:
            return self.positions
        return np.arange(width) if width == len(self.positions) else None


def train_places(scores: Matrix) -> Places:
    """Return the places of the train samples; those of plain arrays are their columns."""
    own = scores.train_positions if isinstance(scores, Scores) else None
    return _places(own, scores.shape[1])


def target_places(scores: Matrix) -> Places:
    """Return the places of the targets; those of plain arrays are their rows."""
    own = scores.target_positions if isinstance(scores, Scores) else None
    return _places(own, scores.shape[0])


def _places(positions: Rows | None, count: int) -> Places:
    if positions is None:
        return Places(np.arange(count), count)
    # Positions are chosen from those of the whole split, however often rows were left out.
    return Places(whole_column(positions), count_below(positions))

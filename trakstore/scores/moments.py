"""Mean and standard deviation of each target's scores over train rows, in one streamed pass."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import NumericsError
from trakstore.passes.scheduler import map_reduce, tile_ranges
from trakstore.scores.factored import Scores
from trakstore.scores.parts import Window
from trakstore.scores.streaming import plan_windows

__all__ = ["row_moments"]

F64 = NDArray[np.float64]


def row_moments(scores: Scores, memory_limit: int | str | None = None) -> tuple[F64, F64]:
    """Mean and standard deviation over the train rows, shapes (m,).

    Parameters
    ----------
    scores : Scores, shape (m, n)
    memory_limit : int or str, optional
        Bytes of one process; a quarter of the available memory when None.

    Raises
    ------
    NumericsError
        A score is NaN or infinite.
    MemoryLimitError
        One target and one tile do not fit.
    """
    (rows, columns), step = scores.shape, scores.tile_rows
    plan = plan_windows(scores, "means of scores", memory_limit, target_bytes=64)
    run = partial(map_reduce, rows=columns, step=step, merge=np.add, workers=plan.workers)
    sums = [run(_Sums(scores.window(*at, plan.ahead), step)) for at in plan.windows(rows)]
    mean, square = np.concatenate(sums, axis=1) / columns
    if not np.isfinite(square).all():
        bad = int(np.flatnonzero(~np.isfinite(square))[0])
        raise NumericsError(
            f"scores of target {bad} are NaN or infinite: look at `trakstore kernel`"
        )
    return mean, np.sqrt(np.maximum(square - mean**2, 0))


@dataclass(frozen=True, eq=False)
class _Sums:
    """Sums of scores and of their squares, shape (2, targets)."""

    window: Window
    step: int

    def __call__(self, start: int, stop: int) -> F64:
        total = np.zeros((2, len(self.window.lefts[0])))
        tiles = tile_ranges(start, stop, self.step)
        with self.window.reading(tiles):
            for low, high in tiles:
                tile = self.window.tile(low, high)
                total[0] += tile.sum(axis=1, dtype=np.float64)
                total[1] += np.einsum("ij,ij->i", tile, tile, dtype=np.float64)
        return total

"""Mean and standard deviation of each target's scores over train rows, in one streamed pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import NumericsError
from trakstore.scores.factored import Scores
from trakstore.scores.streaming import WindowPass, each_window
from trakstore.scores.window_plans import plan_windows

F64 = NDArray[np.float64]


def row_moments(scores: Scores, memory_limit: int | str | None = None) -> tuple[F64, F64]:
    """Compute the mean and standard deviation over the train rows, shapes (m,).

    Parameters
    ----------
    scores : Scores, shape (m, n)
    memory_limit : int or str, optional
        Bytes of one process; a quarter of the available memory when None.

    Raises
    ------
    NumericsError
        When a score is NaN or infinite.
    MemoryLimitError
        When one target and one tile do not fit.
    """
    columns = scores.shape[1]
    plan = plan_windows(
        scores.sizes,
        "means of scores",
        memory_limit,
        target_bytes=64,
        device_bytes=8 * scores.tile_rows,
    )
    sums = each_window(scores, plan, _SumPass, "means")
    # In float64, since the variance is a small difference of two large numbers.
    mean, square = np.concatenate(sums, axis=1) / columns
    if not np.isfinite(square).all():
        bad = int(np.flatnonzero(~np.isfinite(square))[0])
        raise NumericsError(
            f"scores of target {bad} are NaN or infinite: look at `trakstore kernel`"
        )
    # Rounding may make the variance of nearly equal scores negative.
    return mean, np.sqrt(np.maximum(square - mean**2, 0))


@dataclass(frozen=True, eq=False)
class _SumPass(WindowPass[Any, F64]):
    """Sums of scores and of their squares, shape (2, targets), where the tiles are."""

    takes_tensors: ClassVar[bool] = True

    def begin(self) -> Any:
        device = self.device
        if device == "cpu":
            return np.zeros((2, self.targets))
        import torch

        return torch.zeros((2, self.targets), dtype=torch.float64, device=device)

    def take(self, state: Any, tile: Any, low: int) -> None:  # noqa: ARG002
        if isinstance(tile, np.ndarray):
            state[0] += tile.sum(axis=1, dtype=np.float64)
            state[1] += np.einsum("ij,ij->i", tile, tile, dtype=np.float64)
        else:
            wide = tile.double()
            state[0] += wide.sum(dim=1)
            state[1] += wide.square_().sum(dim=1)

    def end(self, state: Any) -> F64:
        if isinstance(state, np.ndarray):
            return state
        from trakstore.passes.pinned import to_host

        return to_host(state)

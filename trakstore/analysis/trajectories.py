"""Trajectories of scores: those of chosen train samples from epoch to epoch, on a common scale."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from trakstore.errors import NotFoundError, TrakStoreError
from trakstore.passes.rows import whole_column
from trakstore.scores.factored import Scores
from trakstore.scores.moments import row_moments
from trakstore.scores.needed import need_scores

F64 = NDArray[np.float64]


def trajectories(
    scores: Scores, position: Any, *, memory_limit: int | str | None = None
) -> xr.Dataset:
    """Score some train samples by each epoch alone.

    Each epoch has its own scale (gradient norms collapse once a model fits), so that each score is also
    given in standard deviations of its target's scores at that epoch. These take a pass over the train
    features of each epoch.

    Parameters
    ----------
    scores : Scores, shape (m, n)
        Scores of any method, over several epochs.
    position : array of int, shape (m, r)
        Train samples of each target, as rows of the stored split: ``top_k(...)["position"]``.
    memory_limit : int or str, optional
        Bytes of one process; a quarter of the available memory when None.

    Returns
    -------
    Dataset
        Dimensions ``(epoch, target, rank)``: ``score`` and ``standard``, the score less its target's
        mean by their standard deviation (0 where all scores are equal). Coordinates ``epoch``,
        ``target_id`` and, of ``(target, rank)``, ``train`` (sample ids) and ``position``.

    Raises
    ------
    TrakStoreError
        When the positions have another shape.
    NotFoundError
        When a position is not among the train rows, or is masked.
    NumericsError, MemoryLimitError
        As in :func:`trakstore.scores.moments.row_moments`.

    Examples
    --------
    >>> scores = ts.trak_scores(store)
    >>> lines = trajectories(scores, ts.top_k(scores, 2)["position"])
    >>> lines["score"].dims, lines["standard"].values[:, 0].round(1).tolist()
    (('epoch', 'target', 'rank'), [[0.7, 0.3], [2.9, 1.4], [1.4, 1.9]])
    """
    need_scores(scores)
    rows = np.asarray(position)
    if rows.ndim != 2 or len(rows) != scores.shape[0] or rows.dtype.kind not in "iu":
        raise TrakStoreError(
            f"position needs some rows for each of {scores.shape[0]} targets, got {rows.dtype} "
            f"of shape {rows.shape}"
        )
    columns, where = np.unique(_columns(scores, rows), return_inverse=True)
    where = where.reshape(rows.shape)
    chosen = scores.isel(train=columns)
    pairs = [_epoch(scores, chosen, epoch, where, memory_limit) for epoch in scores.epochs]
    dims = ("epoch", "target", "rank")
    ids = whole_column(chosen.train_ids)[where]
    coords = {
        "epoch": np.array(scores.epochs, dtype=object),  # numbers and names
        "target_id": ("target", whole_column(scores.target_ids)),
        "train": (dims[1:], ids),
        "position": (dims[1:], rows),
    }
    values = zip(("score", "standard"), zip(*pairs, strict=True), strict=True)
    variables = {name: (dims, np.stack(parts)) for name, parts in values}
    return xr.Dataset(variables, coords, {"method": scores.method})


def _epoch(
    scores: Scores, chosen: Scores, epoch: Any, where: Any, memory_limit: int | str | None
) -> tuple[F64, F64]:
    """Compute scores of an epoch, plain and in standard deviations; shapes (m, r)."""
    mean, deviation = (one[:, None] for one in row_moments(scores.epoch(epoch), memory_limit))
    # All targets are scored with every chosen sample, and each target keeps its own: one pass for all.
    dense = np.asarray(chosen.epoch(epoch), dtype=np.float64)
    score: F64 = np.take_along_axis(dense, where, axis=1)
    moved = score - mean
    standard = np.divide(moved, deviation, out=np.zeros_like(moved), where=deviation > 0)
    return score, standard


def _columns(scores: Scores, rows: NDArray[Any]) -> NDArray[np.int64]:
    """Return the columns of scores for these rows of the stored split."""
    if scores.train_positions is None:
        return rows
    asked, where = np.unique(rows, return_inverse=True)
    stored = whole_column(scores.train_positions)
    # A row beyond the last one is compared with the last, and so counts as absent.
    nearest = np.minimum(np.searchsorted(stored, asked), len(stored) - 1)
    absent = asked[stored[nearest] != asked]
    if absent.size:
        raise NotFoundError(f"row {absent[0]} is not among the train rows of the scores")
    columns: NDArray[np.int64] = nearest[where].reshape(rows.shape)
    return columns

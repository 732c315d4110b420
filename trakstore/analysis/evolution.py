"""Evolution of scores from epoch to epoch: whole rows of scores for some targets, no matrix."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from trakstore.passes.memory import give_back
from trakstore.passes.rows import taken_rows, whole_column
from trakstore.scores.factored import Scores
from trakstore.scores.needed import need_scores
from trakstore.scores.rank_correlation import centred_ranks, row_correlation
from trakstore.scores.running_lists import Order, check_finite, keys
from trakstore.scores.top_k import check_request
from trakstore.scores.windows import window_ranges

# Arrays for each score of a window: itself, its ranks at two epochs, an order, and scratch.
SCORE_BYTES = 80
F64 = NDArray[np.float64]


def evolution(
    scores: Scores,
    k: int = 10,
    *,
    order: Order = "largest",
    memory_limit: int | str | None = None,
) -> xr.Dataset:
    """Score the targets by each epoch alone, and compare each epoch with the one before.

    For chosen targets select them first, ``scores.isel(target=...)``; for groups of targets,
    :func:`trakstore.group_scores`. The train features of each epoch are read once for each window of
    targets.

    Parameters
    ----------
    scores : Scores, shape (m, n)
        Scores of any method, over several epochs.
    k : int
        Entries of each list.
    order : {"largest", "smallest", "magnitude"}
        Scores that come first in a list.
    memory_limit : int or str, optional
        Bytes of one process; a quarter of the available memory when None. A target needs 80 n.

    Returns
    -------
    Dataset
        Dimensions ``(epoch, target)``: ``mean``, ``std``, ``min`` and ``max`` over train rows;
        ``spearman`` with the scores of the epoch before, and ``kept``, the share of the list that
        was in the list before (NaN at the first epoch). Dimensions ``(epoch, target, rank)``:
        ``score``, ``train`` (sample ids), ``position`` (stored row) and ``rank_before`` (1 is the
        first; 0 at the first epoch). Coordinates ``epoch`` and ``target_id``.

    Raises
    ------
    TrakStoreError
        When ``k`` is not in 1..n, or the order is unknown.
    NumericsError
        When a score is NaN or infinite.
    MemoryLimitError
        When the scores of one target do not fit.

    Examples
    --------
    >>> over_time = evolution(ts.trak_scores(store).isel(target=[0]), k=2)
    >>> over_time.epoch.values.tolist(), over_time["train"].values[:, 0].tolist()
    ([2, 5, 15], [['train-21', 'train-12'], ['train-9', 'train-3'], ['train-15', 'train-9']])
    >>> over_time["spearman"].values[:, 0].round(1)
    array([nan, 0.6, 0.5])
    """
    need_scores(scores)
    k = check_request(k, scores.shape[1], order)
    # Arrays of many sizes come and go below: freed ones that the allocator kept would double the
    # memory.
    give_back()
    windows = window_ranges(scores.shape, memory_limit, SCORE_BYTES)
    parts = [_window(scores, slice(*window), k, order) for window in windows]
    whole: xr.Dataset = xr.concat(parts, "target")
    column = whole["position"].values.astype(np.int64)
    whole["train"] = (whole["position"].dims, taken_rows(scores.train_ids, column))
    if scores.train_positions is not None:
        whole["position"] = (whole["position"].dims, taken_rows(scores.train_positions, column))
    coords = {
        "epoch": np.array(scores.epochs, dtype=object),  # numbers and names
        "target_id": ("target", whole_column(scores.target_ids)),
    }
    return whole.assign_coords(coords).assign_attrs(method=scores.method, order=order)


def _window(scores: Scores, targets: slice, k: int, order: Order) -> xr.Dataset:
    """Summarise all epochs, for some targets."""
    chosen, epochs, before = scores.isel(target=targets), [], None
    for epoch in scores.epochs:
        rows = np.asarray(chosen.epoch(epoch), dtype=np.float64)
        check_finite(rows, targets.start, np.arange(rows.shape[1]))
        now = _Ranked(rows, k, order)
        epochs.append(now.summary(rows, before))
        before = now
    return xr.concat(epochs, "epoch")


class _Ranked:
    """Ranks of an epoch's scores, and the first entries: all that the next epoch needs of this one."""

    def __init__(self, rows: F64, k: int, order: Order) -> None:
        self.centred = centred_ranks(rows)
        ordered = np.argsort(-keys(rows, order), axis=1, kind="stable")
        self.first = ordered[:, :k].copy()  # a view would keep the whole order in memory
        # Place of each score in the whole list, counted from 1: the inverse of the order.
        self.ranks = np.empty_like(ordered)
        np.put_along_axis(self.ranks, ordered, np.arange(1, rows.shape[1] + 1)[None], axis=1)

    def summary(self, rows: F64, before: _Ranked | None) -> xr.Dataset:
        """Summarise the scores of an epoch, compared with the epoch before."""
        first = self.first
        correlation, kept = np.full((2, len(rows)), np.nan)
        old = np.zeros(first.shape, dtype=np.int64)
        if before is not None:
            # Spearman's is the correlation of ranks.
            correlation = row_correlation(self.centred, before.centred)
            kept = np.array(
                [np.isin(*pair).mean() for pair in zip(first, before.first, strict=True)]
            )
            old = np.take_along_axis(before.ranks, first, axis=1)
        numbers = {"mean": rows.mean(1), "std": rows.std(1), "min": rows.min(1), "max": rows.max(1)}
        numbers |= {"spearman": correlation, "kept": kept}
        score = np.take_along_axis(rows, first, axis=1)
        lists = {"score": score, "position": first, "rank_before": old}
        return xr.Dataset(
            {name: ("target", values) for name, values in numbers.items()}
            | {name: (("target", "rank"), values) for name, values in lists.items()}
        )

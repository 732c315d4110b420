"""Agreement of the scores of several runs: over seeds, checkpoints or subsets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import TrakStoreError
from trakstore.quantities import as_whole, shown
from trakstore.scores.rank_correlation import spearman
from trakstore.scores.same_rows import need_same_rows
from trakstore.scores.windows import Matrix, need_matrix, target_windows

# p of rank-biased overlap: with 0.9, the first ten entries have 86% of the weight.
PERSISTENCE = 0.9


def stability(
    runs: Sequence[Matrix], top_k: int = 10, memory_limit: int | str | None = None
) -> dict[str, float]:
    r"""Measure the agreement of runs that scored the same targets on the same train samples.

    Parameters
    ----------
    runs : sequence of Scores, DataArray or array, shape (m, n) each
        Two or more runs.
    top_k : int
        Length of the lists that are compared.
    memory_limit : int or str, optional
        Bytes of one process, for each run.

    Returns
    -------
    dict
        Means over targets and pairs of runs: ``spearman`` of all scores, 0 for a target whose scores
        are all equal in one of the runs; ``jaccard`` of the first ``top_k``; ``rank_biased_overlap`` of
        the first ``top_k``, :math:`(1 - p) \sum_d p^{d-1} |A_d \cap B_d| / d` with p = 0.9, divided by
        its value for equal lists.

    Raises
    ------
    TrakStoreError
        For fewer than two runs, shapes that differ, or a ``top_k`` outside of 1..n.
    NumericsError
        For scores that are not finite.
    SpecMismatchError
        For ids that differ: runs of other samples, or of the same in another order.

    References
    ----------
    Webber, Moffat, Zobel: "A Similarity Measure for Indefinite Rankings", TOIS 2010, equation 7.

    Examples
    --------
    >>> scores = ts.trak_scores(store)
    >>> agreement = stability([scores.epoch(5), scores.epoch(15)], top_k=5)
    >>> sorted(agreement), stability([scores, scores], top_k=5)["spearman"]
    (['jaccard', 'rank_biased_overlap', 'spearman'], 1.0)
    """
    if not isinstance(runs, Iterable):
        raise TrakStoreError(f"needed the scores of two or more runs, got {shown(runs)}")
    runs = [need_matrix(run) for run in runs]
    shapes = {tuple(run.shape) for run in runs}
    if len(runs) < 2 or len(shapes) > 1:
        raise TrakStoreError(
            f"needed the scores of two or more runs, of one shape, got {len(runs)} of "
            f"{sorted(shapes)}: give other stores of the same splits, or more epochs"
        )
    need_same_rows(runs)
    columns = runs[0].shape[1]
    top_k = as_whole(top_k, "top_k", 1, columns, needed=f"must be in 1..{columns}")
    values: dict[str, list[float]] = {"spearman": [], "jaccard": [], "rank_biased_overlap": []}
    # All runs have the same shape and limit, so that their windows have the same targets.
    for window in zip(*(target_windows(run, memory_limit) for run in runs), strict=True):
        for (_, _, a), (_, _, b) in combinations(window, 2):
            # Equal scores have no correlation. They count as 0, as in an LDS: without them, runs that
            # agree on nothing else would look alike.
            values["spearman"] += np.nan_to_num(spearman(a, b), nan=0.0).tolist()
            lists = [np.argsort(-rows, axis=1, kind="stable")[:, :top_k] for rows in (a, b)]
            for one, other in zip(*lists, strict=True):
                values["jaccard"].append(_jaccard(one, other))
                values["rank_biased_overlap"].append(_overlap(one, other))
    return {name: float(np.mean(each)) for name, each in values.items()}


def _jaccard(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    common = len(np.intersect1d(a, b))
    return common / (2 * len(a) - common)


def _overlap(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    depths = np.arange(1, len(a) + 1)
    common = np.array([len(np.intersect1d(a[:depth], b[:depth])) for depth in depths])
    # For a list cut at k the sum never reaches 1: it is divided by its value for equal lists, the sum
    # of the weights.
    weights = PERSISTENCE ** (depths - 1)
    return float((weights * common / depths).sum() / weights.sum())

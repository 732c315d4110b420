"""Histograms of a target's scores over the train samples."""

from __future__ import annotations

import numpy as np
import xarray as xr

from trakstore.passes.rows import whole_column
from trakstore.quantities import as_whole
from trakstore.scores.factored import Scores
from trakstore.scores.needed import need_scores
from trakstore.scores.windows import target_windows

# Standard deviations that the pooled histogram shows; values beyond are in its end bins.
_REACH = 8.0


def distribution(
    scores: Scores, bins: int = 48, *, memory_limit: int | str | None = None
) -> xr.Dataset:
    """Count the scores of each target in bins, and those of all targets on a common scale.

    For chosen targets select them first, ``scores.isel(target=...)``: whole rows are computed.

    Parameters
    ----------
    scores : Scores, shape (m, n)
        Scores of any method; epochs are averaged as the method does it.
    bins : int
        Number of bins of equal width, from the smallest to the largest score of the target.
    memory_limit : int or str, optional
        Bytes of one process; a quarter of the available memory when None.

    Returns
    -------
    Dataset
        ``count`` (target, bin) and ``edge`` (target, edge); ``mean`` and ``std`` (target);
        ``pooled`` (bin) and ``pooled_edge`` (edge), of the scores of all targets in standard
        deviations from their target's mean, those beyond 8 in the last bins. Coordinate
        ``target_id``.

    Raises
    ------
    TrakStoreError
        For fewer than 2 bins.
    NumericsError
        When a score is NaN or infinite.
    MemoryLimitError
        When the scores of one target do not fit.

    Examples
    --------
    >>> counts = distribution(ts.trak_scores(store), bins=4)
    >>> counts["count"].sizes, counts["count"].sum("bin").values.tolist()
    (Frozen({'target': 6, 'bin': 4}), [24, 24, 24, 24, 24, 24])
    """
    need_scores(scores)
    bins = as_whole(bins, "bins", 2)
    targets = scores.shape[0]
    counts = np.zeros((targets, bins), dtype=np.int64)
    edges, moments = np.zeros((targets, bins + 1)), np.zeros((2, targets))
    pooled, reach = np.zeros(bins, dtype=np.int64), (-_REACH, _REACH)
    for start, _, rows in target_windows(scores, memory_limit):
        for at, row in enumerate(rows, start):
            counts[at], edges[at] = np.histogram(row, bins)
            mean, deviation = moments[:, at] = row.mean(), row.std()
            # A target whose scores are all equal has no scale: the pooled histogram leaves it out.
            if deviation > 0:
                standard = np.clip((row - mean) / deviation, *reach)
                pooled += np.histogram(standard, bins, reach)[0]
    return xr.Dataset(
        {
            "count": (("target", "bin"), counts),
            "edge": (("target", "edge"), edges),
            "mean": ("target", moments[0]),
            "std": ("target", moments[1]),
            "pooled": ("bin", pooled),
            "pooled_edge": ("edge", np.linspace(*reach, bins + 1)),
        },
        {"target_id": ("target", whole_column(scores.target_ids))},
        {"method": scores.method},
    )

"""Exact nearest neighbours of targets among train rows, by features or stored activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from trakstore.errors import SpecMismatchError, TrakStoreError
from trakstore.methods.epochs import EpochPair, epoch_pairs, scores_of
from trakstore.passes.memory import memory_budget
from trakstore.passes.rows import RowByRow, Rows, TakenRows, take
from trakstore.planning import ranges
from trakstore.quantities import as_whole, is_one_of
from trakstore.scores.factored import Scores
from trakstore.scores.parts import Part
from trakstore.scores.places import Index, positions
from trakstore.scores.top_k import top_k
from trakstore.storage import layout
from trakstore.storage.layout import Epoch
from trakstore.storage.store import FeatureStore

Metric: TypeAlias = Literal["l2", "cosine"]
# Further candidates beyond k: they come in the order of float32 products, and float64 chooses among
# all.
SPARE = 16


def neighbours(
    store: FeatureStore,
    targets: str = "test",
    train: str = "train",
    epoch: Epoch | None = None,
    k: int = 10,
    *,
    metric: Metric = "l2",
    activations: str | None = None,
    select: Index = slice(None),
    memory_limit: int | str | None = None,
    allow_other_weights: bool = False,
) -> xr.Dataset:
    """List the k train rows nearest to each target.

    One streamed pass finds k + 16 candidates by float32 products. Their distances are then computed
    from differences in float64, and sorted, so that equal rows have distance 0.

    Parameters
    ----------
    store : FeatureStore
        Open store that holds both splits.
    targets, train : str
        Names of splits with m and n rows.
    epoch : int or str, optional
        Epoch of both splits; may be left out if only one has both.
    k : int
        Number of neighbours, 1 to n.
    metric : {"l2", "cosine"}
        Distance ‖t − φ‖, or 1 − ⟨t, φ⟩/(‖t‖ ‖φ‖), which is 1 for a row of zeros.
    activations : str, optional
        Layer whose stored activations are compared; by default gradient features are.
    select : integer, slice, positions or mask
        Selection of the targets; all by default.
    memory_limit : int or str, optional
        Bytes of one process; a quarter of the available memory when None.
    allow_other_weights : bool
        Whether to compare even targets and train rows that were made with different checkpoints.

    Returns
    -------
    Dataset
        Dimensions ``("target", "rank")``: ``distance`` (float64), ``train`` (sample ids),
        ``position`` (rows of the stored split); coordinate ``target_id``.

    Raises
    ------
    TrakStoreError
        When the metric is unknown, ``k`` is not in 1..n, or several epochs have both splits and none is
        named.
    NotFoundError
        When there is no such epoch or split, or the layer has no stored activations.
    IncompleteError
        When rows of a split are missing.
    SpecMismatchError
        When the splits were made with different weights, or have different dimensions.
    MemoryLimitError
        When the plan does not fit.

    Examples
    --------
    >>> near = ts.neighbours(store, epoch=15, k=2, metric="cosine")
    >>> near["train"].values[0].tolist(), near["distance"].values[0].round(2).tolist()
    (['train-9', 'train-6'], [0.43, 0.5])
    """
    if not is_one_of(metric, get_args(Metric)):
        raise TrakStoreError(f"metric must be 'l2' or 'cosine', got {metric!r}")
    pairs = epoch_pairs(store, targets, train, epoch, allow_other_weights=allow_other_weights)
    if len(pairs) > 1:
        known = ", ".join(str(pair.epoch) for pair in pairs[:12])
        raise TrakStoreError(f"distances are within one epoch: name one (--epoch) of {known}")
    # Distances at different epochs have no common scale, and so no meaningful mean.
    (pair,) = pairs
    name = layout.FEATURES if activations is None else f"{layout.ACTIVATIONS}{activations}"
    rows = pair.target.column(name), pair.train.column(name)
    # Features have the width of the store's projection, activations that of each split's layer.
    if rows[0].shape[1:] != rows[1].shape[1:]:
        raise SpecMismatchError(
            f"{name} has {rows[0].shape[1]} units in {targets}, {rows[1].shape[1]} in {train}"
        )
    most = pair.train.rows
    k = as_whole(k, "k", 1, most, needed=f"must be in 1..{most}, the rows of {train}")
    scores = _closeness(pair, *rows, metric).isel(target=select)
    near = top_k(scores, min(most, k + SPARE), memory_limit=memory_limit)
    # Positions are those of the stored split, which count masked rows too.
    stored = near["position"].values
    candidates = stored - np.searchsorted(pair.train.masked, stored)
    own = take(rows[0], positions(select, pair.target.rows, "target"))
    distance = _distances(own, rows[1], candidates, metric, memory_budget(memory_limit))
    # Candidates come in the order of their scores, which a stable sort keeps for equal distances.
    order = np.argsort(distance, axis=1, kind="stable")[:, :k]
    pick = {"rank": xr.DataArray(order, dims=("target", "rank"))}
    chosen = near.drop_vars("score").isel(pick)
    nearest = np.take_along_axis(distance, order, axis=1)
    result = chosen.assign(distance=(("target", "rank"), nearest))
    return result.assign_attrs(metric=metric, epoch=pair.epoch, column=name)


def _closeness(pair: EpochPair, target: Rows, train: Rows, metric: Metric) -> Scores:
    """Return scores that increase with nearness: ⟨t, φ⟩ − ‖φ‖²/2, or ⟨t, φ⟩/‖φ‖.

    ‖t − φ‖² = ‖t‖² − 2 (⟨t, φ⟩ − ‖φ‖²/2), whose first term is the same for all train rows.
    """
    border: Literal["unit", "half"] = "unit" if metric == "cosine" else "half"
    part = Part(pair.epoch, _Bordered(target, "one"), _Bordered(train, border))
    return scores_of("neighbours", [part], [pair])


def _distances(
    target: Rows, train: Rows, candidates: NDArray[np.int64], metric: Metric, limit: int
) -> NDArray[np.float64]:
    """Compute distances of each target to its candidates, shapes (m, c) -> (m, c), in float64.

    If t and φ are nearly equal, ‖t‖² − 2⟨t, φ⟩ + ‖φ‖² would be all rounding; their difference is not.
    """
    count, width = candidates.shape
    # Copies of each candidate: as stored, in float64, the difference, and its square.
    row_bytes = 32 * width * train.shape[1]
    distances = np.empty((count, width))
    for low, high in ranges(count, max(1, limit // 4 // row_bytes)):
        wanted = candidates[low:high].ravel()
        # Many targets have candidates in the same chunks, which are read once for all of them.
        near = TakenRows(train, wanted).read(0, wanted.size).astype(np.float64)
        near = near.reshape(high - low, width, -1)
        own = target.read(low, high).astype(np.float64)[:, None, :]
        if metric == "cosine":
            distances[low:high] = _cosine(own, near)
        else:
            distances[low:high] = np.linalg.norm(near - own, axis=2)
    return distances


def _cosine(own: NDArray[np.float64], near: NDArray[np.float64]) -> NDArray[np.float64]:
    product = np.einsum("mcd,mxd->mc", near, own)
    norms = np.linalg.norm(near, axis=2) * np.linalg.norm(own, axis=2)
    cosine: NDArray[np.float64] = np.zeros_like(product)
    np.divide(product, norms, out=cosine, where=norms > 0)
    return 1 - cosine


@dataclass(frozen=True, eq=False)
class _Bordered(RowByRow):
    """Rows with a further column: 1; or −‖row‖²/2; or 0, with the row scaled to unit length."""

    border: Literal["one", "half", "unit"]
    dtype = np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.base.shape[0], self.base.shape[1] + 1)

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        rows = self.base.read(start, stop)
        out = np.zeros((len(rows), self.shape[1]), dtype=np.float32)
        out[:, :-1] = rows
        # The last column is still 0, so that these are the squared norms of the rows themselves.
        squares = np.einsum("ij,ij->i", out, out, dtype=np.float64)
        if self.border == "one":
            out[:, -1] = 1
        elif self.border == "half":
            out[:, -1] = -squares / 2
        else:
            lengths = np.sqrt(squares, where=squares > 0, out=np.ones_like(squares))
            out /= lengths[:, None]
        return out

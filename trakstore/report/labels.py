"""Columns of the store beside a query's result: labels of its samples, outputs of its targets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from trakstore.methods.epochs import EpochPair, UnmaskedSplit
from trakstore.passes.rows import TakenRows


def with_labels(
    found: xr.Dataset, pair: EpochPair, rows: NDArray[np.int64] | None = None
) -> xr.Dataset:
    """Add ``label`` to a dataset, for the train samples at its ``position``.

    Parameters
    ----------
    found : Dataset
        Result of a query.
    pair : EpochPair
        Splits that have the labels; if a needed one has none, ``found`` is unchanged.
    rows : ndarray of int64, optional
        Rows of the targets of ``found``, which then get ``target_label`` too.
    """
    sides = [pair.train.stored] if rows is None else [pair.train.stored, pair.target.stored]
    if not all("label" in side.columns for side in sides):
        return found
    # Positions count masked rows, so they are looked up in the stored split, not in the unmasked one.
    positions = found["position"]
    taken = TakenRows(pair.train.stored.column("label"), positions.values.ravel())
    labels = taken.read(0, positions.size).reshape(positions.shape)
    labelled = found.assign(label=(positions.dims, labels))
    if rows is None:
        return labelled
    own = TakenRows(pair.target.column("label"), rows).read(0, len(rows))
    return labelled.assign(target_label=("target", own))


def with_outputs(
    found: xr.Dataset, pairs: Sequence[EpochPair], rows: NDArray[np.int64], *, mean: bool = False
) -> xr.Dataset:
    """Add ``target_output`` and ``target_loss``, dims ``(epoch, target)``, if any epoch has them.

    Parameters
    ----------
    found : Dataset
        Result of :func:`trakstore.analysis.evolution`.
    pairs : sequence of EpochPair
        Splits of each of its epochs.
    rows : ndarray of int64
        Rows of the targets.
    mean : bool
        Whether ``found`` has one target, the mean of the given rows.
    """
    targets = {pair.epoch: pair.target for pair in pairs}
    each = [targets[epoch] for epoch in found["epoch"].values.tolist()]
    for name in ("output", "loss"):
        if not any(name in one.stored.columns for one in each):
            continue
        values = np.stack([_column_or_nan(one, name, rows) for one in each])
        if mean:
            values = values.mean(1, keepdims=True)
        found = found.assign({f"target_{name}": (("epoch", "target"), values)})
    return found


def _column_or_nan(split: UnmaskedSplit, name: str, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Read some rows of a column of numbers; NaN if this epoch lacks the column."""
    if name not in split.stored.columns:
        return np.full(len(rows), np.nan)
    return TakenRows(split.column(name), rows).read(0, len(rows)).astype(np.float64)

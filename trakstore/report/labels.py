"""Labels beside the samples of a query's result."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from trakstore.methods.epochs import EpochPair
from trakstore.passes.rows import TakenRows


def with_labels(
    found: xr.Dataset, pair: EpochPair, rows: NDArray[np.int64] | None = None
) -> xr.Dataset:
    """Add ``label`` to a dataset: of the train samples at its ``position``.

    Parameters
    ----------
    found : Dataset
        Result of a query.
    pair : EpochPair
        Splits that have the labels; where one that is needed has none, ``found`` stays as it is.
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

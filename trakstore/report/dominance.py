"""Lists that one train sample dominates: often a near copy of the target."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from trakstore.methods.epochs import EpochPair
from trakstore.passes.rows import Rows, TakenRows

# Factor by which the first score exceeds the second if the first sample stands out.
TIMES = 3.0
# Cosine of gradients above which two samples may be copies: to the model they are nearly one.
NEAR_COPY = 0.8


@dataclass(frozen=True)
class Dominant:
    """First train sample of a list, whose score is many times that of the second.

    Attributes
    ----------
    name : str
        Sample id.
    times : float
        Its score over that of the second; infinite if no other sample helps, or harms.
    cosine : float
        Cosine of the features of the target and the sample at the last epoch; NaN if one is 0.
    """

    name: str
    times: float
    cosine: float

    @property
    def near_copy(self) -> bool:
        """True if the model treats both as nearly the same."""
        return self.cosine >= NEAR_COPY


def dominants(top: xr.Dataset, pair: EpochPair, rows: NDArray[np.int64]) -> list[Dominant | None]:
    """Find, in each list, the first sample if it dominates the list.

    Parameters
    ----------
    top : Dataset
        From ``top_k``, of the targets ``rows``.
    pair : EpochPair
        Splits at the epoch whose features are compared.
    rows : ndarray of int64, shape (m,)
        Rows of the targets.
    """
    target, train = pair.target.column("features"), pair.train.stored.column("features")
    found: list[Dominant | None] = []
    for at, row in enumerate(rows.tolist()):
        one = top.isel(target=at)
        times = _times(one["score"].values.astype(float))
        if times < TIMES:
            found.append(None)
            continue
        place = int(one["position"].values[0])
        # One pair of rows at a time: without projection, rows are as long as the model is large.
        cosine = _cosine(_row(target, row), _row(train, place))
        found.append(Dominant(str(one["train"].values[0]), times, cosine))
    return found


def _times(scores: NDArray[np.float64]) -> float:
    """Divide the first score by the second; 0 where there are not two, or the first is 0."""
    if len(scores) < 2 or scores[0] == 0:
        return 0.0
    second = scores[1] * np.sign(scores[0])
    return float(abs(scores[0]) / second) if second > 0 else math.inf


def _row(column: Rows, at: int) -> NDArray[np.float64]:
    read = TakenRows(column, np.array([at])).read(0, 1)
    return np.asarray(read[0], dtype=np.float64)


def _cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / lengths if lengths else math.nan

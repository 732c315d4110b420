"""Scores with the parts of one train row: rows that add up to it, such as those of its tokens."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from trakstore.errors import TrakStoreError
from trakstore.passes.rows import ArrayRows, Rows
from trakstore.scores.factored import Scores
from trakstore.scores.parts import F32
from trakstore.storage.eight_bits import LARGEST
from trakstore.storage.layout import Epoch

__all__ = ["of_row_parts", "parts_apart"]


def of_row_parts(scores: Scores, column: int, epoch: Epoch, parts: F32) -> F32:
    """Compute one epoch's share of the scores of the same targets with parts of one train row.

    Parameters
    ----------
    scores : Scores
        Scores with all train rows, shape (m, n).
    column : int
        Position of the row among these.
    epoch : epoch
        An epoch of the scores.
    parts : ndarray of float32, shape (p, k)
        Features of parts of the row at that epoch, which add up to the row's.

    Returns
    -------
    ndarray of float32, shape (m, p)
        Shares of the scores. A score is linear in the train row's features, and each part takes the
        row's Q and length: the shares of all epochs and parts add up to the row's score.

    Raises
    ------
    TrakStoreError
        For scores with a threshold, which are not linear.
    """
    if scores.soft_threshold:
        raise TrakStoreError(
            "scores with a soft threshold are no sums over the parts of a row: ask without it"
        )
    one = scores.isel(train=column)
    at = one.epochs.index(epoch)
    part = one.parts[at]
    # Q is averaged over all epochs before the other epochs are left out.
    scale = part.column_scale if one.scale_apart is None else one.scale_apart
    part = replace(part, train=ArrayRows(parts), column_scale=_repeated(scale, len(parts)))
    alone = replace(
        one,
        parts=(part,),
        reduce="sum",
        train_ids=ArrayRows(np.arange(len(parts))),
        train_positions=None,
        train_labels=None,
    )
    return np.asarray(alone) * np.float32(one.shares[at])


def parts_apart(
    scores: Scores, column: int, epoch: Epoch, parts: F32, *, eight_bits: bool = False
) -> float:
    """Return the distance between the sum of parts and the train row, as a share of the row's norm.

    Parameters
    ----------
    scores : Scores
        Scores with all train rows.
    column : int
        Position of the row among these.
    epoch : epoch
        An epoch of the scores.
    parts : ndarray of float32, shape (p, k)
        Features of parts that should add up to the row's.
    eight_bits : bool
        True for a row of integers times a scale: differences of half a step are then ignored.
    """
    one = scores.isel(train=column)
    stored = one.parts[one.epochs.index(epoch)].train.read(0, 1)[0]
    row, wide = np.asarray(stored, dtype=np.float64), parts.astype(np.float64)
    apart = np.abs(wide.sum(axis=0) - row)
    if eight_bits:
        # The largest number of a row is LARGEST steps, which gives the step.
        step = np.abs(row).max(initial=0.0) / LARGEST
        apart = np.maximum(apart - step / 2, 0)
    # Parts that nearly cancel leave their own rounding in the sum, however small the sum is.
    length = max(np.linalg.norm(row), np.linalg.norm(wide), np.finfo(np.float32).tiny)
    return float(np.linalg.norm(apart) / length)


def _repeated(scale: Rows | None, count: int) -> Rows | None:
    return None if scale is None else ArrayRows(np.repeat(scale.read(0, 1), count))

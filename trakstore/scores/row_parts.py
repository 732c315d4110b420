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
    """Compute one epoch's share of the scores of the same targets with the parts of one train row.

    Parameters
    ----------
    scores : Scores
        Scores with all train rows, shape (m, n).
    column : int
        Place of the row among them.
    epoch : epoch
        One of the scores.
    parts : ndarray of float32, shape (p, k)
        Rows of features at that epoch that add up to the row's.

    Returns
    -------
    ndarray of float32, shape (m, p)
        A score is linear in the train row's features, and the row's Q and length are those of each of
        its parts: shares of all epochs and parts add up to the row's score.

    Raises
    ------
    TrakStoreError
        For scores that are cut off at a threshold: they are not linear.
    """
    if scores.soft_threshold:
        raise TrakStoreError(
            "scores with a soft threshold are no sums over the parts of a row: ask without it"
        )
    one = scores.isel(train=column)
    at = one.epochs.index(epoch)
    part = one.parts[at]
    # The Q that is averaged over the epochs is so before the others are left out.
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
    """Return how far the sum of parts is from the train row at an epoch, as a share of the row.

    Parameters
    ----------
    scores : Scores
        Scores with all train rows.
    column : int
        Place of the row among them.
    epoch : epoch
        One of the scores.
    parts : ndarray of float32, shape (p, k)
        Rows of features that should add up to the row's.
    eight_bits : bool
        True for a row of integers times a scale: half a step of each number is no difference then.
    """
    one = scores.isel(train=column)
    stored = one.parts[one.epochs.index(epoch)].train.read(0, 1)[0]
    row, wide = np.asarray(stored, dtype=np.float64), parts.astype(np.float64)
    apart = np.abs(wide.sum(axis=0) - row)
    if eight_bits:
        # The largest number of a row is LARGEST steps.
        step = np.abs(row).max(initial=0.0) / LARGEST
        apart = np.maximum(apart - step / 2, 0)
    # Parts that nearly cancel leave their own rounding in the sum, however small that is.
    length = max(np.linalg.norm(row), np.linalg.norm(wide), np.finfo(np.float32).tiny)
    return float(np.linalg.norm(apart) / length)


def _repeated(scale: Rows | None, count: int) -> Rows | None:
    return None if scale is None else ArrayRows(np.repeat(scale.read(0, 1), count))

"""Scores with the parts of one train row: rows that add up to it, such as those of its tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import TrakStoreError
from trakstore.passes.rows import ArrayRows, Rows
from trakstore.scores.factored import Scores
from trakstore.scores.parts import F32
from trakstore.storage.layout import Epoch

__all__ = ["of_row_parts", "parts_apart"]


def of_row_parts(
    scores: Scores, column: int, parts: Mapping[Epoch, F32], ids: NDArray[Any]
) -> Scores:
    """Return the scores of the same targets with the parts of one train row.

    Parameters
    ----------
    scores : Scores
        Scores with all train rows, shape (m, n).
    column : int
        Place of the row among them.
    parts : mapping of epoch to ndarray of float32, shape (p, k)
        Rows of features that add up to the row's, for each epoch of the scores.
    ids : ndarray, shape (p,)
        Names of the parts.

    Returns
    -------
    Scores
        (target, part), shape (m, p). A score is linear in the train row's features, and the row's Q and
        length are those of each of its parts: scores of all parts add up to the row's.

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
    made = tuple(
        replace(
            part,
            train=ArrayRows(parts[part.epoch]),
            column_scale=_repeated(part.column_scale, len(ids)),
        )
        for part in one.parts
    )
    named = ArrayRows(ids)
    return replace(one, parts=made, train_ids=named, train_positions=None, train_labels=None)


def parts_apart(scores: Scores, column: int, parts: Mapping[Epoch, F32]) -> float:
    """Return how far the sum of parts is from the train row, relative to it, at the worst epoch."""
    distances = []
    for part in scores.isel(train=column).parts:
        row = np.asarray(part.train.read(0, 1)[0], dtype=np.float64)
        total = parts[part.epoch].sum(axis=0, dtype=np.float64)
        tiny = np.finfo(np.float32).tiny
        distances.append(np.linalg.norm(total - row) / max(np.linalg.norm(row), tiny))
    return float(max(distances))


def _repeated(scale: Rows | None, count: int) -> Rows | None:
    return None if scale is None else ArrayRows(np.repeat(scale.read(0, 1), count))

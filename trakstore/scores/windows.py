"""Whole rows of scores, a few targets at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from trakstore.errors import LARGER_LIMIT, MemoryLimitError, TrakStoreError
from trakstore.passes.memory import memory_budget
from trakstore.planning import human_bytes, ranges
from trakstore.scores.factored import Scores
from trakstore.scores.needed import need_some_scores
from trakstore.scores.running_lists import check_finite

Matrix: TypeAlias = Scores | xr.DataArray | NDArray[Any]
# Bytes for each score of a window: as computed, as float64, sorted, and scratch.
_COPIES = 40


def target_windows(
    scores: Matrix, memory_limit: int | str | None = None, each: int = _COPIES
) -> Iterator[tuple[int, int, NDArray[np.float64]]]:
    """Yield the first target of each window, the one after its last, and their scores in float64.

    Scores have the shape (targets, n). Windows take ``each`` bytes for a score.

    Raises
    ------
    TrakStoreError
        For anything but two dimensions.
    NumericsError
        A score is NaN or infinite: a statistic of it would be no number either, or a wrong one.
    MemoryLimitError
        When the scores of one target do not fit.
    """
    scores = need_matrix(scores)
    for start, stop in window_ranges(scores.shape, memory_limit, each):
        if isinstance(scores, np.ndarray):
            part: Any = scores[start:stop]
        else:
            part = scores.isel(target=slice(start, stop))
        # Statistics of float32 scores are taken in float64.
        rows = np.asarray(part, dtype=np.float64)
        check_finite(rows, start, np.arange(rows.shape[1]))
        yield start, stop, rows


def window_ranges(
    shape: tuple[int, ...], memory_limit: int | str | None, each: int = _COPIES
) -> Iterator[tuple[int, int]]:
    """Cut targets into windows whose scores, ``each`` bytes for one, fit; raise as the above."""
    if len(shape) != 2:
        raise TrakStoreError(f"scores have the shape (target, train), got {shape}")
    rows, columns = shape
    limit = memory_budget(memory_limit)
    fitting = limit // (each * max(1, columns))
    if fitting < 1:
        raise MemoryLimitError(
            f"the scores of one target take {human_bytes(each * columns)}, the memory limit is "
            f"{human_bytes(limit)}: {LARGER_LIMIT}"
        )
    return ranges(rows, min(rows, fitting))


def need_matrix(got: Any) -> Matrix:
    """Return a matrix of scores, its targets first: a DataArray is read by the names of its dimensions.

    Raises
    ------
    TrakStoreError
        For what is no matrix of scores, or one of no scores.
    """
    if not isinstance(got, np.ndarray) and not hasattr(got, "isel"):
        raise TrakStoreError(
            f"needed scores of shape (target, train), as Scores, a DataArray or an array of NumPy, got "
            f"{type(got).__name__}"
        )
    if len(got.shape) != 2:
        raise TrakStoreError(f"scores have the shape (target, train), got {got.shape}")
    if isinstance(got, xr.DataArray):
        if "target" not in got.dims:
            raise TrakStoreError(f"scores have the dimensions (target, train), got {got.dims}")
        got = got.transpose("target", ...)
    need_some_scores(got)
    matrix: Matrix = got
    return matrix


def need_labels(
    scores: Matrix, train_labels: Any, target_labels: Any
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the classes of train rows and of targets.

    Raises
    ------
    TrakStoreError
        For what is no matrix of scores, labels of other lengths, or that are NaN.
    """
    scores = need_matrix(scores)
    train, target = np.asarray(train_labels), np.asarray(target_labels)
    if (target.shape, train.shape) != ((scores.shape[0],), (scores.shape[1],)):
        raise TrakStoreError(
            f"scores of {scores.shape} need labels of these lengths, got {target.shape} of targets "
            f"and {train.shape} of train rows"
        )
    # NaN is of no class, not even of its own.
    if any(labels.dtype.kind == "f" and np.isnan(labels).any() for labels in (train, target)):
        raise TrakStoreError("labels are NaN for some rows: give each a class, or leave it out")
    return train, target


def by_target(
    scores: Matrix,
    function: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    memory_limit: int | str | None = None,
) -> NDArray[np.float64]:
    """Compute a function of whole rows, one number a target."""
    windows = target_windows(scores, memory_limit)
    return np.concatenate([function(rows) for _, _, rows in windows])

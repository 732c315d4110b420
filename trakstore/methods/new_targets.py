"""Scores of targets that are in no split, by kernels that are factored already."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import NotFoundError, TrakStoreError
from trakstore.kernels.inverse_metric import quadratic_form
from trakstore.methods.similarity import InverseRows
from trakstore.passes.rows import ArrayRows, Rows
from trakstore.scores.factored import Scores
from trakstore.scores.parts import Part
from trakstore.storage.layout import FEATURES, Epoch

# Columns of some targets at one epoch, each with one row a target.
TargetColumns = Mapping[str, NDArray[Any]]


def of_new_targets(
    scores: Scores,
    targets: Mapping[Epoch, TargetColumns],
    ids: NDArray[Any],
    memory_limit: int | str | None = None,
) -> Scores:
    """Return the scores of other targets with the same train rows, kernels and scales.

    Parameters
    ----------
    scores : Scores
        Scores of any targets from a function of this folder, with ``of="loss"`` and with kernels of
        train rows alone.
    targets : mapping of epoch to mapping of str to ndarray
        For each epoch to be combined, in order: ``features``, shape (m, k), and the columns
        ``out_to_loss`` and ``norm``, shape (m,), if the method uses them.
    ids : ndarray, shape (m,)
        Names of the targets.
    memory_limit : int or str, optional
        Bytes of one process; a quarter of the available memory when None.

    Returns
    -------
    Scores
        Scores (target, train), shape (m, n), equal to the bit to those of a split with these columns.

    Raises
    ------
    NotFoundError
        When the scores lack an epoch, or a column is missing.
    TrakStoreError
        When targets are part of the kernel, since other targets have another kernel.
    """
    parts = []
    for epoch, columns in targets.items():
        (part,) = scores.epoch(epoch).parts
        if part.kernel.startswith("mix"):
            raise TrakStoreError(
                f"{scores.method} scores of epoch {epoch!r} have a kernel with {part.kernel} of their "
                f"own targets in it, and new targets have another: use mix=0, or featurize the targets"
            )
        row_scale = _ROW_SCALES[scores.method](part, columns, memory_limit)
        parts.append(replace(part, target=_rows(columns, FEATURES), row_scale=row_scale))
    return replace(
        scores,
        parts=tuple(parts),
        target_ids=ArrayRows(ids),
        target_positions=None,
        target_labels=None,
    )


RowScale = Callable[[Part, TargetColumns, "int | str | None"], Rows | None]


def _rows(columns: TargetColumns, name: str) -> ArrayRows:
    if name not in columns:
        raise NotFoundError(f"the targets have no column {name!r}, which this method needs")
    return ArrayRows(columns[name])


def _none(*_: object) -> None:
    """Return None, since gradients are those of the output."""


def _loss(_: Part, columns: TargetColumns, __: object) -> Rows:
    """Return the factor of the loss gradients, without the sign, which cancels between the sides."""
    return _rows(columns, "out_to_loss")


def _unit(_: Part, columns: TargetColumns, __: object) -> Rows:
    return InverseRows(_rows(columns, "norm"), _rows(columns, "out_to_loss"))


def _whitened(part: Part, columns: TargetColumns, memory_limit: int | str | None) -> Rows:
    """Return the scale to unit length in the metric of the factored kernel."""
    if part.factor is None:
        raise TypeError("whitened scores have a kernel")
    squared = quadratic_form(_rows(columns, FEATURES), part.factor, memory_limit=memory_limit)
    lengths = ArrayRows(np.sqrt(np.maximum(squared, 0)))
    return InverseRows(lengths, _rows(columns, "out_to_loss"))


# By method, as scores name theirs.
_ROW_SCALES: dict[str, RowScale] = {
    "trak": _none,
    "influence": _loss,
    "tracin": _loss,
    "grad_dot": _loss,
    "grad_cos": _unit,
    "whitened_cos": _whitened,
}

"""Train rows that a list may name: by a mask, ids or labels, and by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import NotFoundError, TrakStoreError
from trakstore.passes.rows import Rows
from trakstore.scores.classes import Groups, classes_of, pieces
from trakstore.scores.factored import Scores

Where: TypeAlias = NDArray[np.bool_] | Sequence[bool] | Mapping[str, Any] | None


def train_groups(scores: Scores, where: Where, *, per_class: bool = False) -> Groups | None:
    """Return one group of the wanted rows, or one group a class; None if all rows are wanted.

    Raises
    ------
    TrakStoreError
        For a mask of another length, an unknown key, or scores without labels.
    NotFoundError
        For ids or labels that no train row has.
    """
    if where is None and not per_class:
        return None
    wanted = _wanted(scores, where)
    if not per_class:
        # A group of -1 is in no list, and tiles without any other are not read.
        of = wanted.astype(np.int32)
        of -= 1
        return Groups(of, (int(np.count_nonzero(wanted)),), np.zeros(1, dtype=np.int64))
    # Only labels of rows that are wanted have a list.
    return classes_of(_labels(scores), wanted)


def _wanted(scores: Scores, where: Where) -> NDArray[np.bool_]:
    if where is None:
        return np.ones(scores.shape[1], dtype=bool)
    if isinstance(where, Mapping):
        if set(where) - {"id", "label"} or not where:
            raise TrakStoreError(f"where= selects by 'id' or 'label', got {sorted(where)}")
        chosen = np.ones(scores.shape[1], dtype=bool)
        if "id" in where:
            chosen &= _among(scores.train_ids, where["id"], "id")
        if "label" in where:
            chosen &= _among(_labels(scores), where["label"], "label")
        return chosen
    mask = np.array(where)
    if mask.dtype != bool or mask.shape != (scores.shape[1],):
        raise TrakStoreError(
            f"where= needs a boolean for each of {scores.shape[1]} train rows, or "
            f"{{'id': [...]}} or {{'label': [...]}}; got {mask.dtype} of shape {mask.shape}"
        )
    return mask


def _labels(scores: Scores) -> Rows:
    if scores.train_labels is None:
        raise TrakStoreError("these scores have no train labels: the split has no column 'label'")
    return scores.train_labels


def _among(column: Rows, values: Any, what: str) -> NDArray[np.bool_]:
    """Mark the rows whose value is one of some, all of which must be there."""
    wanted, seen = set(np.atleast_1d(np.asarray(values)).tolist()), set[Any]()
    chosen = np.zeros(column.shape[0], bool)
    for low, piece in pieces(column):
        # Through Python's own values, so that ids of any dtype compare as a caller writes them.
        every = piece.tolist()
        chosen[low : low + len(every)] = [one in wanted for one in every]
        seen |= wanted.intersection(every)
    if wanted - seen:
        raise NotFoundError(f"no train row has the {what} {sorted(wanted - seen)[0]!r}")
    return chosen

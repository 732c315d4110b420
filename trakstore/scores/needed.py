"""Checks that a function is given scores, with errors that name what it was given."""

from __future__ import annotations

from typing import Any

from trakstore.errors import TrakStoreError
from trakstore.scores.factored import Scores


def need_scores(got: object) -> None:
    """Raise a :class:`TrakStoreError` for anything but :class:`Scores`."""
    if not isinstance(got, Scores):
        raise TrakStoreError(
            f"needed Scores, as trak_scores and the like give them, got {type(got).__name__}; a matrix "
            f"goes in as xarray.DataArray(matrix, dims=('target', 'train')) where top_k is asked"
        )


def need_some_scores(got: Any) -> None:
    """Raise a :class:`TrakStoreError` for scores without targets or without train rows."""
    if not got.shape[0]:
        raise TrakStoreError("these scores have no targets: select one at least")
    need_train_rows(got)


def need_train_rows(got: Any) -> None:
    """Raise a :class:`TrakStoreError` for scores without train rows."""
    if not got.shape[1]:
        raise TrakStoreError("these scores have no train rows: select one at least")

"""The sample that a question is about: its features, and its description."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from numpy.typing import NDArray

from trakstore.methods.new_targets import TargetColumns
from trakstore.report.sample import Shown
from trakstore.storage.layout import FEATURES, Epoch

C = TypeVar("C")
# Every column that methods read of a target.
_COLUMNS = (FEATURES, "norm", "out_to_loss")


@dataclass(frozen=True)
class AskedSample:
    """A sample with its columns.

    Attributes
    ----------
    columns : mapping of epoch to mapping of str to ndarray
        Columns that methods read, one row each.
    ids : ndarray, shape (1,)
    target : int, str or None
        Id; None for a sample that is in no split.
    split : str or None
    label, predicted : int or None
    shown : Shown or None
    """

    columns: Mapping[Epoch, TargetColumns]
    ids: NDArray[Any]
    target: int | str | None = None
    split: str | None = None
    label: int | None = None
    predicted: int | None = None
    shown: Shown | None = None


def taken_columns(columns: Mapping[str, C]) -> dict[str, C]:
    """Return the columns that methods read."""
    return {name: columns[name] for name in _COLUMNS if name in columns}

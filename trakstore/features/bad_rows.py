"""Rows that are not stored as they are: values that are not finite, labels out of range."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import NumericsError, TrakStoreError
from trakstore.features.reading import named_sample
from trakstore.planning import counted
from trakstore.storage import layout
from trakstore.storage.columns import activations_dtype, unstorable
from trakstore.storage.skipped import REASONS, reason_text, skipped_norms

__all__ = ["BadRows", "need_classes"]

_SHOWN = 5
_LABEL = "label"
_BIT = {name: 1 << at for at, name in enumerate(REASONS)}


@dataclass(frozen=True)
class BadRows:
    """Bad rows of a block, with the reasons.

    Attributes
    ----------
    reasons : ndarray of uint8, shape (rows,)
        Sums of bits, as in the column ``skipped``; 0 for good rows.
    ids : ndarray, shape (rows,)
    first : int
        Number of the first row in the split.
    """

    reasons: NDArray[np.uint8]
    ids: NDArray[Any]
    first: int

    @classmethod
    def of(
        cls,
        columns: Mapping[str, NDArray[Any]],
        ids: NDArray[Any],
        first: int,
        *,
        classes: int | None = None,
        dtype: str | None = None,
        keep_bits: int | None = None,
    ) -> Self:
        """Find bad rows from their computed columns.

        Parameters
        ----------
        columns : mapping of name to array
            Features, activations, and one number a row.
        ids : ndarray
            Ids of these rows.
        first : int
            Number of the first row in the split.
        classes : int, optional
            Number that labels must be below.
        dtype, keep_bits : optional
            How rows are stored: those that this cannot hold are bad, too.
        """
        reasons = np.zeros(len(ids), dtype=np.uint8)
        no_class = _no_class(columns.get(_LABEL), len(ids), classes)
        for name, values in columns.items():
            kind = "activations" if name.startswith(layout.ACTIVATIONS) else name
            bad = ~_finite(values)
            if name == _LABEL:
                bad |= no_class
            reasons[bad] |= _BIT[kind]
            if dtype is not None and values.ndim > 1:
                own = (dtype, keep_bits) if name == layout.FEATURES else (activations_dtype(dtype),)
                reasons[~bad & unstorable(values, *own)] |= _BIT["storage"]
        # A label that is no class explains all else that is wrong with its row: it alone is reported.
        reasons[no_class] &= _BIT[_LABEL]
        return cls(reasons, ids, first)

    def __bool__(self) -> bool:
        return bool(self.reasons.any())

    @property
    def where(self) -> NDArray[np.int64]:
        """Positions of bad rows among these."""
        return np.flatnonzero(self.reasons)

    def refuse(self) -> None:
        """Raise a :class:`NumericsError` that names the rows and what is wrong with them."""
        if self:
            raise NumericsError(
                f"{self.message}; nothing of the block was written: look at these samples (targets "
                f"that are NaN, labels that are all ignored) and at the weights, or "
                f"skip_bad_rows=True (--skip-bad-rows) stores them as masked"
            )

    @property
    def message(self) -> str:
        """Reasons in words, with the numbers of rows and their ids."""
        rows = self.where
        # One list of all reasons; each row has its own besides, unless all have the same.
        every = int(np.bitwise_or.reduce(self.reasons[rows]))
        alike = len(set(self.reasons[rows].tolist())) == 1
        shown = [self._row(row, alone=alike) for row in rows[:_SHOWN].tolist()]
        more = ", ..." if len(rows) > _SHOWN else ""
        verb = "has" if len(rows) == 1 else "have"
        return f"{counted(len(rows), 'row')} {verb} {reason_text(every)} ({', '.join(shown)}{more})"

    def _row(self, row: int, *, alone: bool) -> str:
        position, name = self.first + row, self.ids[row]
        named = f"row {position}" + ("" if name == position else f", sample {name!s}")
        return named if alone else f"{named}: {reason_text(int(self.reasons[row]))}"

    def blanked(self, columns: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Put zeros in bad rows, so that nothing that follows sees them."""
        for values in columns.values():
            values[self.where] = 0
        return columns

    def marked(self, columns: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return columns as they are stored: bad rows have fill values, and ``skipped`` says why."""
        for name, values in columns.items():
            if name == "norm":
                values[self.where] = skipped_norms(self.reasons[self.where])
            elif name != layout.SAMPLE_ID:
                values[self.where] = np.nan if values.dtype.kind == "f" else -1
        return {**columns, layout.SKIPPED: self.reasons}


def _no_class(labels: NDArray[Any] | None, rows: int, classes: int | None) -> NDArray[np.bool_]:
    """Tell which rows have a label that is none of the classes."""
    if labels is None or classes is None:
        return np.zeros(rows, dtype=bool)
    # Labels may be floats: one between two classes would otherwise be cut to the lower of them.
    outside: NDArray[np.bool_] = (labels < 0) | (labels >= classes) | (labels != np.floor(labels))
    return outside


def _finite(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Tell which rows are finite throughout."""
    if values.dtype.kind != "f":
        return np.ones(len(values), dtype=bool)
    numbers = values
    if values.ndim > 1:
        # The sum of squares is finite if and only if all of a row is, and needs no array of the
        # block's size: squares of float32 and their sums do not overflow float64.
        with np.errstate(over="ignore", invalid="ignore"):
            numbers = np.einsum("ij,ij->i", values, values, dtype=np.float64)
    finite: NDArray[np.bool_] = np.isfinite(numbers)
    return finite


def need_classes(
    labels: NDArray[Any], classes: int | None, start: int, ids: NDArray[Any] | None = None
) -> None:
    """Raise a :class:`TrakStoreError` unless labels are classes of the model, where it has such.

    Parameters
    ----------
    labels : ndarray, shape (rows,)
    classes : int or None
        Number of classes; None where any label is one.
    start : int
        Position of the first row in its split.
    ids : ndarray, optional
        Names of the split's rows.
    """
    bad = np.flatnonzero(_no_class(labels, len(labels), classes))
    if len(bad):
        label = float(labels[bad[0]])
        given = f"{label:.0f}" if label.is_integer() else f"{label:.6g}"
        raise TrakStoreError(
            f"{named_sample(start + int(bad[0]), ids)} has label {given}, the model has classes 0 to "
            f"{int(classes or 0) - 1}"
        )

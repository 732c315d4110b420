"""Columns as people give them: checked, and in the dtypes that are stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numcodecs import BitRound
from numpy.typing import NDArray

from trakstore.errors import NumericsError, TrakStoreError
from trakstore.planning import counted
from trakstore.storage import layout
from trakstore.storage.ids import as_ids

__all__ = [
    "column_dtype",
    "narrowed_column",
    "row_column",
    "sample_ids",
    "stored_activations",
    "stored_rows",
    "unstorable",
]

_OF_ONE = {"have": "has", "are": "is"}
UNDERFLOW = 0.01  # largest relative change of a row's norm that storing it may cause


def stored_rows(
    features: NDArray[Any], dtype: str, first_row: int, keep_bits: int | None = None
) -> dict[str, NDArray[Any]]:
    """Return the ``features`` and ``norm`` columns of rows, as they are stored.

    Parameters
    ----------
    features : array, shape (rows, dim)
        Projected gradients.
    dtype : str
        The stored dtype.
    first_row : int
        Row number of the first, for messages.
    keep_bits : int, optional
        Bits of the mantissa that are kept.

    Raises
    ------
    NumericsError
        For NaN or inf; for values that ``dtype`` cannot hold; for rows whose norm the cast changes
        by more than 1% (underflow).
    """
    if features.dtype.kind not in "iuf":
        raise TrakStoreError(
            f"features are real numbers, got {features.dtype}; of complex ones, give the real and "
            f"the imaginary part as two features"
        )
    norm = _finite_norms(features, first_row, "features")
    stored = _cast(features, dtype, keep_bits)
    if features.dtype.kind in "iu":
        changed = ~_as_given(features, _cast(features, dtype)).all(axis=1)
        told = f"have integers that {dtype} does not"
        _refuse(np.asarray(changed), first_row, told, "give floats, or smaller ones")
    if stored is not features:
        what = f"underflow {dtype}" if keep_bits is None else f"are not kept by {keep_bits} bits"
        _refuse_changed(stored, norm, first_row, what)
    return {layout.FEATURES: stored, "norm": norm.astype(np.float32)}


def stored_activations(rows: NDArray[Any], dtype: str, first_row: int) -> NDArray[Any]:
    """Return activations as they are stored, shape (rows, width); raise as :func:`stored_rows`."""
    norm = _finite_norms(rows, first_row, "activations")
    stored = _cast(rows, dtype)
    if stored is not rows:
        _refuse_changed(stored, norm, first_row, f"underflow {dtype}")
    return stored


def unstorable(rows: NDArray[Any], dtype: str, keep_bits: int | None = None) -> NDArray[np.bool_]:
    """Tell which finite rows would be refused, since they are not kept by the stored dtype."""
    stored, norm = _cast(rows, dtype, keep_bits), _norms(rows)
    if stored is rows:
        return np.zeros(len(rows), dtype=bool)
    return _overflowed(stored) | _changed(stored, norm)


def _cast(rows: NDArray[Any], dtype: str, keep_bits: int | None = None) -> NDArray[Any]:
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        stored = np.ascontiguousarray(rows.astype(dtype, copy=False))
        return stored if keep_bits is None else _rounded(stored, keep_bits)


def _overflowed(stored: NDArray[Any]) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = ~np.isfinite(stored).all(axis=1)
    return found


def _changed(stored: NDArray[Any], norm: NDArray[np.float64]) -> NDArray[np.bool_]:
    with np.errstate(invalid="ignore"):  # the norm of a row that overflows is infinite
        found: NDArray[np.bool_] = np.abs(_norms(stored) - norm) > UNDERFLOW * norm
    return found


def _finite_norms(rows: NDArray[Any], first_row: int, what: str) -> NDArray[np.float64]:
    norm = _norms(rows)
    remedy = "look at these samples and at the weights"
    _refuse(~np.isfinite(norm), first_row, f"have NaN or infinite {what}", remedy)
    return norm


def _refuse_changed(
    stored: NDArray[Any], norm: NDArray[np.float64], first_row: int, what: str
) -> None:
    _refuse(_overflowed(stored), first_row, f"overflow {stored.dtype}", "use float32")
    changed = _changed(stored, norm)
    _refuse(changed, first_row, f"{what} (the norm changes by more than 1%)", "use float32")


def _norms(rows: NDArray[Any]) -> NDArray[np.float64]:
    norms: NDArray[np.float64] = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    return norms


def _rounded(rows: NDArray[Any], keep_bits: int) -> NDArray[Any]:
    codec = BitRound(keepbits=keep_bits)
    return np.asarray(codec.decode(codec.encode(rows.copy()))).view(rows.dtype).reshape(rows.shape)


def _refuse(bad: NDArray[np.bool_], first_row: int, what: str, remedy: str) -> None:
    if bad.any():
        rows = np.flatnonzero(bad) + first_row
        shown = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
        if len(rows) == 1:
            verb, _, rest = what.partition(" ")
            what = f"{_OF_ONE.get(verb, verb + 's')} {rest}"
        named = f"row{'' if len(rows) == 1 else 's'} {shown}"
        raise NumericsError(
            f"{counted(len(rows), 'row')} {what} ({named}); nothing of the block was written: "
            f"{remedy}"
        )


def sample_ids(
    ids: Sequence[int] | Sequence[str] | None, rows: int, first: int = 0
) -> NDArray[Any]:
    """Return ids of samples as int64 or strings; positions from ``first`` where none are given."""
    if ids is None:
        return np.arange(first, first + rows, dtype=np.int64)
    array = as_ids(ids)
    if array.shape != (rows,):
        raise TrakStoreError(f"ids must be {rows} integers or strings, got shape {array.shape}")
    repeated = rows - len(np.unique(array))
    if repeated:
        raise TrakStoreError(f"ids must differ: {repeated} of {rows} repeat others")
    return array


def column_dtype(array: NDArray[Any]) -> str:
    """Return the name of the dtype that a column's array is stored in."""
    return "str" if array.dtype.kind == "T" else array.dtype.name


def row_column(values: Any, rows: int, name: str, dtype: type) -> NDArray[Any] | None:
    """Return one finite value for each row; None where none are given."""
    if values is None:
        return None
    array = np.asarray(values)
    if array.shape != (rows,):
        raise TrakStoreError(f"{name} must have shape ({rows},), got {array.shape}")
    return narrowed_column(array, dtype, name)


def narrowed_column(given: NDArray[Any], dtype: type, name: str) -> NDArray[Any]:
    """Return values in the dtype that is stored: integers as they were given, floats within 1%.

    Raises
    ------
    TrakStoreError
        For values that are no numbers, not finite, or that the dtype does not have.
    """
    if given.dtype.kind not in "biuf":
        raise TrakStoreError(f"{name} must be real numbers, got {given.dtype}")
    if given.dtype.kind == "f" and not np.isfinite(given).all():
        bad = np.unique(np.argwhere(~np.isfinite(given))[:, 0])
        shown = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        raise TrakStoreError(
            f"{name} has NaN or infinite values in {counted(len(bad), 'row')} ({shown}); nothing was "
            f"written"
        )
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        stored: NDArray[Any] = given.astype(dtype)
        kept = _as_given(given, stored)
    if not kept.all():
        what = f"numbers that {np.dtype(dtype)} holds"
        if np.dtype(dtype) == np.int64:
            what = "whole numbers up to 2**63 - 1"
        raise TrakStoreError(f"{name} must be {what}, got {given[~kept][0]}; nothing was written")
    return stored


def _as_given(given: NDArray[Any], stored: NDArray[Any]) -> NDArray[np.bool_]:
    """Tell which values are as given: integers exactly, floats within 1%."""
    if given.dtype.kind == "f" and stored.dtype.kind == "f":
        near = np.abs(stored.astype(np.float64) - given) <= UNDERFLOW * np.abs(given)
        return np.asarray(near & np.isfinite(stored))
    # Floats, or 0 and 1, that become integers. Beyond 2**63 a cast to int64 wraps around, and back.
    if given.dtype.kind in "bf":
        return np.asarray(stored.astype(given.dtype) == given) & (np.abs(given * 1.0) < 2.0**63)
    if stored.dtype.kind in "iu":
        return np.asarray((stored.astype(given.dtype) == given) & ((stored < 0) == (given < 0)))
    # Integers that become floats go back again: to compare the two would round the integers too.
    wide, limits = stored.astype(np.float64), np.iinfo(given.dtype)
    inside = (wide >= float(limits.min)) & (wide < float(limits.max) + 1)
    back = np.where(inside, wide, 0).astype(given.dtype)
    return np.asarray(inside & (back == given))

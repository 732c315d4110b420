"""Columns as people give them, checked and converted to the stored dtypes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numcodecs import BitRound
from numpy.typing import NDArray

from trakstore.errors import NumericsError, TrakStoreError
from trakstore.planning import counted
from trakstore.quantities import shown
from trakstore.storage import layout
from trakstore.storage.eight_bits import EIGHT_BITS, MOST_ERROR, dequantised, quantised
from trakstore.storage.ids import as_ids

_OF_ONE = {"have": "has", "are": "is"}
UNDERFLOW = 0.01  # largest relative change of a row's norm that storing it may cause


def stored_rows(
    features: NDArray[Any], dtype: str, first_row: int, keep_bits: int | None = None
) -> dict[str, NDArray[Any]]:
    """Return the columns ``features``, ``norm`` and, in 8 bits, ``row_scale``, as they are stored.

    Parameters
    ----------
    features : array, shape (rows, dim)
        Projected gradients.
    dtype : str
        The stored dtype.
    first_row : int
        Number of the first row, for messages.
    keep_bits : int, optional
        Bits of the mantissa that are kept.

    Raises
    ------
    NumericsError
        For NaN or inf, values that ``dtype`` cannot hold, rows whose norm the cast changes by more than
        1% (underflow), and rows that rounding to 8 bits moves by more than a quarter of their norm.
    """
    if features.dtype.kind not in "iuf":
        raise TrakStoreError(
            f"features are real numbers, got {features.dtype}; of complex ones, give the real and "
            f"the imaginary part as two features"
        )
    cast, norm = _stored(features, dtype, first_row, "features", keep_bits)
    more = {} if cast.scale is None else {layout.ROW_SCALE: cast.scale}
    return {layout.FEATURES: cast.stored, "norm": norm.astype(np.float32), **more}


def stored_activations(rows: NDArray[Any], dtype: str, first_row: int) -> NDArray[Any]:
    """Return activations as they are stored, shape (rows, width); raise as :func:`stored_rows`."""
    return _stored(rows, activations_dtype(dtype), first_row, "activations")[0].stored


def activations_dtype(dtype: str) -> str:
    """Return the dtype in which activations are stored: float16 beside features of 8 bits."""
    return "float16" if dtype == EIGHT_BITS else dtype


def hashed_dtype(dtype: str) -> str:
    """Return the dtype in which given features are hashed: float32 for those of 8 bits."""
    return "float32" if dtype == EIGHT_BITS else dtype


def row_columns_of(dtype: str) -> dict[str, str]:
    """Return the columns, and their dtypes, that come with features of a stored dtype."""
    scale = {layout.ROW_SCALE: "float32"} if dtype == EIGHT_BITS else {}
    return {layout.FEATURES: dtype, "norm": "float32", **scale}


def unstorable(rows: NDArray[Any], dtype: str, keep_bits: int | None = None) -> NDArray[np.bool_]:
    """Tell which finite rows would be refused, because the stored dtype would change them."""
    cast, norm = _cast(rows, dtype, keep_bits), _norms(rows)
    if cast.read is rows:
        return np.zeros(len(rows), dtype=bool)
    return _overflowed(cast.read) | _changed(cast, norm) | _far(cast, rows, norm)


def _stored(
    rows: NDArray[Any], dtype: str, first_row: int, kind: str, keep_bits: int | None = None
) -> tuple[_Cast, NDArray[np.float64]]:
    """Return rows as they are stored, and their norms before; refuse those that would change."""
    norm = _norms(rows)
    remedy = "look at these samples and at the weights"
    _refuse(~np.isfinite(norm), first_row, f"have NaN or infinite {kind}", remedy)
    cast = _cast(rows, dtype, keep_bits)
    # Rounded integers keep nearly the same norm, which would hide a change. With 8 bits every number is
    # rounded, and the distance is checked below.
    if rows.dtype.kind in "iu" and dtype != EIGHT_BITS:
        changed = ~_as_given(rows, _cast(rows, dtype).read).all(axis=1)
        remedy = "give floats, or smaller ones"
        _refuse(np.asarray(changed), first_row, f"have integers that {dtype} does not", remedy)
    if cast.read is not rows:
        what = f"underflow {dtype}" if keep_bits is None else f"are not kept by {keep_bits} bits"
        _refuse(_overflowed(cast.read), first_row, f"overflow {dtype}", "use float32")
        what += " (the norm changes by more than 1%)"
        _refuse(_changed(cast, norm), first_row, what, "use float32")
        what = (
            f"are off by more than {MOST_ERROR:.0%} in 8 bits (one number far larger, or all tiny)"
        )
        _refuse(_far(cast, rows, norm), first_row, what, "use float16")
    return cast, norm


class _Cast(NamedTuple):
    """Rows as they are stored and as they are read, with the scale of each if there is one."""

    stored: NDArray[Any]
    read: NDArray[Any]
    scale: NDArray[np.float32] | None = None


def _cast(rows: NDArray[Any], dtype: str, keep_bits: int | None = None) -> _Cast:
    if dtype == EIGHT_BITS:
        integers, scale = quantised(rows)
        return _Cast(integers, dequantised(integers, scale), scale)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        stored = np.ascontiguousarray(rows.astype(dtype, copy=False))
    if keep_bits is None:
        return _Cast(stored, stored)
    codec = BitRound(keepbits=keep_bits)
    bits = np.asarray(codec.decode(codec.encode(stored.copy())))  # encoding rounds in place
    rounded = bits.view(stored.dtype).reshape(stored.shape)
    return _Cast(rounded, rounded)


def _far(cast: _Cast, rows: NDArray[Any], norm: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Tell which rows in 8 bits are too far from their former values."""
    if cast.scale is None:
        return np.zeros(len(rows), dtype=bool)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(~(_norms(cast.read - rows) <= MOST_ERROR * norm))


def _overflowed(stored: NDArray[Any]) -> NDArray[np.bool_]:
    return np.asarray(~np.isfinite(stored).all(axis=1))


def _changed(cast: _Cast, norm: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Tell which rows have another norm; rows in 8 bits are compared by distance instead."""
    if cast.scale is not None:
        return np.zeros(len(norm), dtype=bool)
    with np.errstate(invalid="ignore"):  # the norm of a row that overflows is infinite
        return np.asarray(np.abs(_norms(cast.read) - norm) > UNDERFLOW * norm)


def _norms(rows: NDArray[Any]) -> NDArray[np.float64]:
    # The squares of float32 features overflow float32 long before the features do.
    norms: NDArray[np.float64] = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    return norms


def _refuse(bad: NDArray[np.bool_], first_row: int, what: str, remedy: str) -> None:
    if bad.any():
        rows = np.flatnonzero(bad) + first_row
        if len(rows) == 1:
            verb, _, rest = what.partition(" ")
            what = f"{_OF_ONE.get(verb, verb + 's')} {rest}"
        named = f"row{'' if len(rows) == 1 else 's'} {first_few(rows)}"
        raise NumericsError(
            f"{counted(len(rows), 'row')} {what} ({named}); nothing of the block was written: "
            f"{remedy}"
        )


def first_few(rows: NDArray[np.integer[Any]]) -> str:
    """Return the numbers of the first rows, for a message.

    Examples
    --------
    >>> first_few(np.arange(9))
    '0, 1, 2, 3, 4, ...'
    """
    return ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")


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
        raise TrakStoreError(
            f"ids must differ: {repeated} of {rows} repeat others, first {_first_repeated(array)}; "
            f"give each sample a name of its own"
        )
    return array


def _first_repeated(ids: NDArray[Any]) -> str:
    """Name the first repeated id, with both of its positions."""
    places: dict[Any, int] = {}
    for place, one in enumerate(ids.tolist()):
        if one in places:
            return f"{shown(one)} at positions {places[one]} and {place}"
        places[one] = place
    return "none"


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
    """Return values in the stored dtype: integers unchanged, floats within 1%.

    Raises
    ------
    TrakStoreError
        For values that are no numbers, are not finite, or cannot be held by the dtype.
    """
    if given.dtype.kind not in "biuf":
        raise TrakStoreError(f"{name} must be real numbers, got {given.dtype}")
    if given.dtype.kind == "f" and not np.isfinite(given).all():
        bad = np.unique(np.argwhere(~np.isfinite(given))[:, 0])
        raise TrakStoreError(
            f"{name} has NaN or infinite values in {counted(len(bad), 'row')} ({first_few(bad)}); "
            f"nothing was written"
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
    """Tell which values are unchanged: integers exactly, floats within 1%."""
    if given.dtype.kind == "f" and stored.dtype.kind == "f":
        near = np.abs(stored.astype(np.float64) - given) <= UNDERFLOW * np.abs(given)
        return np.asarray(near & np.isfinite(stored))
    # Floats, or 0 and 1, become integers. Beyond 2**63 a cast to int64 wraps around, and wraps back.
    if given.dtype.kind in "bf":
        return np.asarray(stored.astype(given.dtype) == given) & (np.abs(given * 1.0) < 2.0**63)
    if stored.dtype.kind in "iu":
        return np.asarray((stored.astype(given.dtype) == given) & ((stored < 0) == (given < 0)))
    # Integers that become floats are converted back, since comparing the two would round the integers
    # as well.
    wide, limits = stored.astype(np.float64), np.iinfo(given.dtype)
    inside = (wide >= float(limits.min)) & (wide < float(limits.max) + 1)
    back = np.where(inside, wide, 0).astype(given.dtype)
    return np.asarray(inside & (back == given))

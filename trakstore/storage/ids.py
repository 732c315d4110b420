"""Names of samples as people have them: whole numbers, or text."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import TrakStoreError
from trakstore.quantities import is_whole, shown

_LONGEST = 2**16  # characters of an id


def as_ids(ids: Any) -> NDArray[Any]:
    """Return ids as int64 or strings, in the shape that they come in.

    Lists, arrays of objects (a column of pandas) and of any integers are taken.

    Raises
    ------
    TrakStoreError
        When they are something else, of both kinds, integers that int64 does not hold, or texts with
        null characters or of more than 65,536 characters.

    Examples
    --------
    >>> as_ids(np.array(["b", "a"], dtype=object))
    array(['b', 'a'], dtype=StringDType())
    >>> as_ids([7, "a"])
    Traceback (most recent call last):
    trakstore.errors.TrakStoreError: ids must be integers or strings, of one kind, got 'a' at position 1
    """
    # A list goes through objects: NumPy would make texts of both numbers and texts.
    given = np.asarray(ids) if hasattr(ids, "__array__") else np.array(ids, dtype=object)
    if given.dtype.kind == "i" or given.size == 0:
        return given.astype(np.int64)
    if given.dtype.kind == "u":
        return _as_integers(given)
    if given.dtype.kind == "U":
        return _as_texts(given)
    return _as_ids_of_objects(given) if given.dtype.kind in "OT" else _no_ids(given)


def _as_ids_of_objects(given: NDArray[Any]) -> NDArray[Any]:
    values = given.ravel().tolist()
    kinds = set(map(type, values))
    if all(issubclass(kind, str) for kind in kinds):
        return _as_texts(given)
    if all(map(is_whole, values)):
        return _as_integers(given)
    return _no_ids(given)


def _as_texts(given: NDArray[Any]) -> NDArray[Any]:
    """Texts as strings, if those can hold them."""
    for text in map(str, given.ravel().tolist()):
        if len(text) > _LONGEST:
            raise TrakStoreError(
                f"ids have {_LONGEST:,} characters at most, got one of {len(text):,}"
            )
        if "\0" in text:  # NumPy's own strings end there: it would be taken for another one
            raise TrakStoreError(f"ids are text without null characters, got {text!r}")
        if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise TrakStoreError(f"ids are text that UTF-8 can hold, got {text!r}")
    return given.astype(np.dtypes.StringDType())


def _as_integers(given: NDArray[Any]) -> NDArray[np.int64]:
    """Whole numbers of any kind as int64; none is changed."""
    low, high = int(given.min()), int(given.max())
    if low < -(2**63) or high >= 2**63:
        raise TrakStoreError(
            f"ids are integers from -2**63 to 2**63 - 1 or strings, got "
            f"{high if high >= 2**63 else low}: give larger ones as strings"
        )
    return given.astype(np.int64)


def _no_ids(given: NDArray[Any]) -> NDArray[Any]:
    """Refuse, naming the first value that is not of the first one's kind, or no id at all."""
    values = given.ravel().tolist()
    kind = str if isinstance(values[0], str) else int
    for position, value in enumerate(values):
        fits = isinstance(value, str) if kind is str else is_whole(value)
        if not fits:
            raise TrakStoreError(
                f"ids must be integers or strings, of one kind, got {shown(value)} at position "
                f"{position}"
            )
    raise TrakStoreError(f"ids must be integers or strings, got {given.dtype}")

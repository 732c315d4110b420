"""Places of targets and train rows, from positions, masks and sample ids that people give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import NotFoundError, TrakStoreError, did_you_mean
from trakstore.passes.rows import Rows, Taken, whole_column
from trakstore.storage.ids import as_ids

Index: TypeAlias = int | slice | Sequence[int] | NDArray[Any]
Ids: TypeAlias = int | str | Sequence[int] | Sequence[str] | NDArray[Any]

# Most ids among which the nearest one is searched: among millions this would take minutes.
_SEARCHED = 10_000


def positions(index: Index, size: int, dim: str) -> Taken:
    """Return the positions that an index selects out of ``size``; ``dim`` is named in errors."""
    if isinstance(index, slice):
        return range(*index.indices(size))
    array: NDArray[Any] = np.atleast_1d(np.asarray(index))
    if array.dtype == bool and array.shape == (size,):
        return np.flatnonzero(array)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise TrakStoreError(f"{dim}= takes an integer, a slice, positions or a mask of {size}")
    outside = array[(array < -size) | (array >= size)]
    if outside.size:
        raise NotFoundError(f"{dim}={outside[0]} is outside of {size} positions")
    # Negative positions count from the end, as in NumPy.
    return np.where(array < 0, array + size, array).astype(np.int64)


def places_of_ids(column: Rows, ids: Ids, what: str) -> NDArray[np.int64]:
    """Return the positions of samples named by their ids, in the order of the names.

    Parameters
    ----------
    column : Rows
        All ids, by position.
    ids : int, str, or sequence of them
        Names of the wanted samples.
    what : str
        Word for one of the samples, for messages.

    Raises
    ------
    NotFoundError
        When no sample has one of the ids.
    TrakStoreError
        When ``ids`` are no ids.
    """
    # Python's own values compare as a caller writes them, whatever the dtype of the ids.
    wanted = np.atleast_1d(as_ids(ids)).ravel().tolist()
    known, among = whole_column(column).tolist(), set(wanted)
    places = {one: at for at, one in enumerate(known) if one in among}
    missing = [one for one in wanted if one not in places]
    if missing:
        if len(known) <= _SEARCHED:
            tail = did_you_mean(missing[0], known)
        else:
            tail = f"; its {len(known):,} ids begin with {', '.join(map(str, known[:3]))}"
        raise NotFoundError(f"no {what} has the id {missing[0]!r}{tail}")
    return np.array([places[one] for one in wanted], dtype=np.int64)

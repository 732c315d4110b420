"""A save of scores under way: its place, the arrays that a stopped save began, and its dtype."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import NumericsError
from trakstore.scores.factored import Scores
from trakstore.storage import layout
from trakstore.storage.backends.chunks import TAIL
from trakstore.storage.backends.location import Location
from trakstore.storage.columns import UNDERFLOW
from trakstore.storage.tables.saved_arrays import SavedArray
from trakstore.storage.tables.saved_table import begin_table, pending_arrays


@dataclass(frozen=True)
class Begun:
    """Arrays that a save writes, and the group's document to be written once they are whole."""

    arrays: list[SavedArray]
    document: bytes


@dataclass(frozen=True)
class Save:
    """A save of scores.

    Attributes
    ----------
    scores : Scores
    location, path
        Group to be written.
    token : str
        Text that is equal only for the same scores.
    dtype : str
        Stored dtype.
    memory_limit : int or str, optional
    """

    scores: Scores
    location: Location
    path: str
    token: str
    dtype: str
    memory_limit: int | str | None

    def begin(self, arrays: list[SavedArray], most: int | None = None) -> Begun:
        """Return the arrays to write: new ones, or those that a stopped save of the same scores began.

        The latter may have chunks of another number of targets, at most ``most``, since another memory
        limit held then. While a save runs, the group's document holds its token.
        """
        document = self.location.get(layout.document_key(self.path))
        begun = pending_arrays(document, self.token)
        alike = list(map(_without_height, begun)) == list(map(_without_height, arrays))
        if document is not None and alike and (most is None or begun[0].chunks[0] <= most):
            return Begun(begun, document)
        return Begun(arrays, begin_table(self.location, self.path, arrays, self.token))

    def write(self, array: SavedArray, values: NDArray[Any], first: int) -> None:
        """Write rows of one of the arrays; ``first`` is the first row of a chunk."""
        array.write(self.location, self.path, values, (first,) + (0,) * (values.ndim - 1))

    def written(self, array: SavedArray) -> frozenset[tuple[int, ...]]:
        """List the chunks of an array that exist and are not empty, as one is after a power loss."""
        chunks: list[tuple[int, ...]] = [()]
        for _ in array.shape:
            chunks = [
                (*at, int(name))
                for at in chunks
                for name in self.location.names(self._key(array, at))
                if name.isdigit()
            ]
        ends = self.location.get_tails([self._key(array, at) for at in chunks], TAIL)
        return frozenset(at for at, end in zip(chunks, ends, strict=True) if end)

    def _key(self, array: SavedArray, at: tuple[int, ...]) -> str:
        return layout.chunk_key(layout.child(self.path, array.name), at)


def _without_height(array: SavedArray) -> SavedArray:
    return replace(array, chunks=(0, *array.chunks[1:]))


def narrowed(scores: NDArray[np.float32], dtype: str, what: str) -> NDArray[Any]:
    """Return scores in the stored dtype; values that would be clamped or lost are refused.

    Parameters
    ----------
    scores : ndarray of float32, shape (rows, columns) or (columns,)
    dtype : str
        Stored dtype.
    what : str
        Name of these scores, for the message.

    Raises
    ------
    NumericsError
        When a score is not finite in ``dtype``, or scores are so small that rounding changes the norm
        of a row by more than 1%.
    """
    # If the sum is finite, so are all its terms, and nothing is kept. An infinite sum may be an
    # overflow of finite terms.
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        stored = scores.astype(dtype, copy=False)
        total = np.add.reduce(stored, axis=None, dtype=np.float32)
    if not np.isfinite(total) and not np.isfinite(stored).all():
        wider = "" if dtype == "float32" else ", or save float32"
        raise NumericsError(
            f"{what} are not finite in {dtype}; raise the damping, or look at the features with "
            f"`trakstore kernel`{wider}"
        )
    if stored is not scores:
        before, after = _norms(scores), _norms(stored)
        if (np.abs(after - before) > UNDERFLOW * before).any():
            raise NumericsError(
                f"{what} are too small for {dtype}: the norm of a row changes by more than 1%; save "
                f"float32"
            )
    return stored


def _norms(rows: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(np.sqrt(np.einsum("...j,...j->...", rows, rows, dtype=np.float64)))

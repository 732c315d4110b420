"""Grams kept in the store: read if valid, and updated when rows were added or masked."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import IncompleteError
from trakstore.kernels.gram import Gram, GramDtype, gram
from trakstore.kernels.row_weights import (
    KernelSplit,
    masked_rows,
    row_weights,
    unmasked_count,
    weighting_of,
)
from trakstore.passes.rows import TakenRows
from trakstore.storage import layout
from trakstore.storage.claims import claimed
from trakstore.storage.dropped_rows import dropped_error, is_dropped
from trakstore.storage.snapshots import is_current
from trakstore.storage.tables.gram_documents import (
    GramDocument,
    GramOrigin,
    gram_array,
    read_gram_document,
)
from trakstore.storage.tables.saved_arrays import SavedArray
from trakstore.storage.tables.saved_table import begin_table, publish_table

# If more than this share of a stored gram's rows were masked since, the gram is computed again;
# otherwise the rows are subtracted from it.
MASKED_SHARE = 0.1


def split_gram(
    split: KernelSplit,
    *,
    dtype: GramDtype = "float32",
    memory_limit: int | str | None = None,
    ready: GramInMemory | None = None,
    device: str = "cpu",
) -> Gram:
    """Return K = Φᵀ diag(w) Φ of a split's unmasked rows, from the stored gram where possible.

    The weights w are 1 where the split has none.

    Rows that were appended since are added to a stored gram of the same split. Rows that were masked
    since are subtracted in float64, if they are at most a tenth. If more were masked, or a row was
    unmasked, the gram is computed again. A new or updated gram is stored if the place can be written.

    Parameters
    ----------
    split : Split
        A complete split.
    dtype : {"float32", "float64"}
        Dtype of the products within a tile; a stored gram of float64 products serves both.
    memory_limit : int or str, optional
        Bytes of one process.
    ready : GramInMemory, optional
        Stored gram, if it was read already.
    device : str
        Device on which a gram of all rows is computed.

    Raises
    ------
    NumericsError
        When features are not finite.
    IncompleteError
        When the rows were dropped, and the stored gram is gone or is one of other rows.
    MemoryLimitError
        When the gram does not fit.
    """
    wanted = origin_of(split, dtype)
    # A gram of fewer rows, or with other masked rows, can still be updated.
    stored = ready or read_gram(split, wanted)
    if stored is not None and stored.origin == wanted:
        return stored.gram
    if split.dropped:
        raise no_gram_error(split, None if stored is None else stored.origin, wanted)
    made = None if stored is None else _updated(split, stored, wanted, memory_limit)
    if made is None:
        rows, weights = split.column(layout.FEATURES), row_weights(split)
        made = gram(rows, weights, dtype=dtype, memory_limit=memory_limit, device=device)
    # `gram` counts rows of weight above 0; the n in λ = c·tr(K)/n counts all unmasked rows.
    made = replace(made, rows=unmasked_count(split))
    write_gram(split, made, wanted)
    return made


def origin_of(split: KernelSplit, dtype: GramDtype) -> GramOrigin:
    """Return the origin that a gram of this split has now."""
    nonce, weighting = split.spec.nonce, weighting_of(split)
    return GramOrigin.of(nonce, split.rows, masked_rows(split), dtype, weighting)


def no_gram_error(
    split: KernelSplit, stored: GramOrigin | None, wanted: GramOrigin
) -> IncompleteError:
    """Return the error for a gram of dropped rows that is needed, but is not the stored one."""
    why = f"none of {wanted.dtype} products, or none that is whole and of these weights, is stored"
    if stored is not None and stored.rows == wanted.rows:
        why = (
            f"the stored one is without {stored.masked} masked rows, and {wanted.masked} are masked "
            f"now: mask what was masked then, and no more"
        )
    elif stored is not None:
        why = f"the stored one is of {stored.rows} rows, and there are {wanted.rows}"
    return dropped_error(
        layout.split_path(split.epoch, split.name), f"no gram is that of now: {why}"
    )


def _updated(
    split: KernelSplit, stored: GramInMemory, wanted: GramOrigin, memory_limit: int | str | None
) -> Gram | None:
    """Update a stored gram: add the rows that were appended since, and subtract masked ones.

    Return None if it must be computed again: a row was unmasked, or so many were masked that the
    difference would be mostly rounding error.
    """
    now = masked_rows(split)
    gone = np.setdiff1d(now[now < stored.origin.rows], stored.masked_positions)
    if (
        len(np.setdiff1d(stored.masked_positions, now))
        or len(gone) > MASKED_SHARE * stored.gram.rows
    ):
        return None
    features, result = split.column(layout.FEATURES), stored.gram
    if stored.origin.rows < wanted.rows:
        added, weights = range(stored.origin.rows, wanted.rows), row_weights(split)
        new = None if weights is None else TakenRows(weights, added)
        more = gram(TakenRows(features, added), new, dtype=result.dtype, memory_limit=memory_limit)
        result = _sum(result, more, 1)
    if len(gone):
        # Rows that are masked now have weight 0: they are subtracted with the weight that they had
        # before.
        weights = row_weights(split, without=stored.masked_positions)
        old = None if weights is None else TakenRows(weights, gone)
        less = gram(TakenRows(features, gone), old, dtype="float64", memory_limit=memory_limit)
        result = _sum(result, less, -1)
    return result


def _sum(left: Gram, right: Gram, sign: int) -> Gram:
    matrix = left.matrix + sign * right.matrix
    return replace(left, matrix=matrix, trace=float(np.trace(matrix)))


def stored_gram(split: KernelSplit, wanted: GramOrigin) -> GramDocument | None:
    """Return the stored gram of a split if it has at most the wanted rows; None if there is none.

    A damaged gram counts as none: it is computed again.
    """
    return read_gram_document(split.location, _path(split), _dim(split), wanted)


@dataclass(frozen=True, eq=False)
class GramInMemory:
    """A gram, its origin, and the positions of the rows that were left out."""

    gram: Gram
    origin: GramOrigin
    masked_positions: NDArray[np.int64]


def read_gram(split: KernelSplit, wanted: GramOrigin) -> GramInMemory | None:
    """Read the stored gram if it is whole and of this split; a damaged one counts as none."""
    stored = stored_gram(split, wanted)
    if stored is None:
        return None
    place, path, masked = split.location, _path(split), np.empty(0, dtype=np.int64)
    try:
        matrix = np.asarray(stored.arrays["gram"].read(place, path), dtype=np.float64)
        if stored.origin == wanted:
            masked = masked_rows(split)
        elif stored.origin.masked:
            masked = np.asarray(stored.arrays["masked"].read(place, path), dtype=np.int64)
    except (KeyError, ValueError, OSError):
        return None
    return GramInMemory(
        Gram(matrix, stored.used, stored.trace, stored.dtype), stored.origin, masked
    )


def write_gram(split: KernelSplit, made: Gram, wanted: GramOrigin) -> None:
    """Store a gram, unless the place cannot be written or another process is writing it."""
    place, path = split.location, _path(split)
    try:
        with claimed(place, path, "kernel"):
            if rows_are_gone(split):
                return
            pending = start_gram(split)
            gram_array(_dim(split)).write(place, path, made.matrix)
            publish(split, pending, replace(wanted, dtype=made.dtype), made.rows, made.trace)
    except (OSError, ValueError):
        # Queries also work on a store that cannot be written; the next one computes the gram again.
        return


def rows_are_gone(split: KernelSplit) -> bool:
    """Tell whether the rows have been dropped: the stored gram must then not be replaced."""
    path = layout.split_path(split.epoch, split.name)
    return is_dropped(split.location, path, split.spec)


def start_gram(split: KernelSplit) -> bytes:
    """Make an empty array for the split's gram, in place of an earlier one.

    Returns
    -------
    bytes
        Pending document, which shows :func:`publish` whether another process began the same gram.
    """
    return begin_table(split.location, _path(split), [gram_array(_dim(split))])


def publish(
    split: KernelSplit, pending: bytes, origin: GramOrigin, used: int, trace: float
) -> None:
    """Write the document of a stored gram, last of all.

    Nothing is written if rows were appended or masked since the split was opened, or the split was
    replaced: the gram would not be that of the present split.

    Raises
    ------
    LocationError
        When the place cannot be written, or another process began the same gram.
    """
    place, path = split.location, _path(split)
    if not is_current(place, split.epoch, split.name, split.state):
        return
    arrays = {"gram": gram_array(_dim(split))}
    if origin.masked:
        masked = SavedArray("masked", "int64", (origin.masked,), (origin.masked,), ("masked_row",))
        masked.create(place, path)
        masked.write(place, path, masked_rows(split))
        arrays["masked"] = masked
    document = {**asdict(origin), "used": used, "trace": trace}
    publish_table(place, path, list(arrays.values()), document, instead_of=pending)


def _path(split: KernelSplit) -> str:
    return layout.gram_path(split.epoch, split.name, weighting_of(split))


def _dim(split: KernelSplit) -> int:
    """Return the columns of the split's features, and so of their gram."""
    return split.column(layout.FEATURES).shape[1]

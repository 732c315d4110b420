"""Grams kept in the store: read where valid, brought up to date where rows came or went."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from trakstore.documents import fields, number, one_of, text, whole
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
from trakstore.storage.snapshots import is_current
from trakstore.storage.tables.saved_arrays import SavedArray
from trakstore.storage.tables.saved_table import (
    begin_table,
    publish_table,
    read_table,
    table_arrays,
)

# Rows and columns of a chunk: 8 MB.
GRAM_CHUNK = 1024
# If more than this share of a stored gram's rows were masked since it was stored, it is computed again;
# otherwise they are subtracted from it.
MASKED_SHARE = 0.1


@dataclass(frozen=True)
class GramOrigin:
    """The rows and weights that a gram was computed from, as its document in the store names them.

    Attributes
    ----------
    nonce : int
        Nonce of the split: a later split of the same name has a different one.
    rows : int
        Rows of the split, masked ones included.
    masked : int
        Number of rows that were left out.
    masked_digest : str
        SHA-256 of their positions (int64, little-endian, ascending); ``""`` for none.
    dtype : {"float32", "float64"}
        Dtype of the products.
    weighting : str
        Weighting of the rows, as a :class:`WeightedSplit` names it; ``""`` where each counts as one.
    """

    nonce: int
    rows: int
    masked: int
    masked_digest: str
    dtype: GramDtype
    weighting: str = ""


def split_gram(
    split: KernelSplit,
    *,
    dtype: GramDtype = "float32",
    memory_limit: int | str | None = None,
    ready: GramInMemory | None = None,
) -> Gram:
    """Return K = Φᵀ diag(w) Φ of a split's unmasked rows: the stored one where it is valid.

    The weights w are 1 where the split has none.

    To a stored gram of fewer rows of the same split those are added that were appended since, and those
    that were masked since are subtracted in float64, if they are at most a tenth. If a row was
    unmasked, or more were masked, the gram is computed again. What is new is stored, unless the place
    cannot be written.

    Parameters
    ----------
    split : Split
        Complete.
    dtype : {"float32", "float64"}
        Dtype of the products within a tile; a stored gram of float64 products serves both.
    memory_limit : int or str, optional
        Bytes of one process.
    ready : GramInMemory, optional
        The stored gram, where it was read already.

    Raises
    ------
    NumericsError
        Features that are not finite.
    MemoryLimitError
        The gram does not fit.
    """
    wanted = origin_of(split, dtype)
    # A gram of fewer rows, or of other masked ones, may still be of use.
    stored = ready or read_gram(split, wanted)
    if stored is not None and stored.origin == wanted:
        return stored.gram
    made = None if stored is None else _updated(split, stored, wanted, memory_limit)
    if made is None:
        rows, weights = split.column(layout.FEATURES), row_weights(split)
        made = gram(rows, weights, dtype=dtype, memory_limit=memory_limit)
    # `gram` counts rows of weight above 0; the n in λ = c·tr(K)/n counts all unmasked rows.
    made = replace(made, rows=unmasked_count(split))
    write_gram(split, made, wanted)
    return made


def origin_of(split: KernelSplit, dtype: GramDtype) -> GramOrigin:
    """Return the origin of a gram of this split as it is now."""
    masked = masked_rows(split)
    # In a fixed byte order, since the digest is compared on other machines.
    digest = hashlib.sha256(masked.astype("<i8").tobytes()).hexdigest() if len(masked) else ""
    nonce, weighting = split.spec.nonce, weighting_of(split)
    return GramOrigin(nonce, split.rows, len(masked), digest, dtype, weighting)


def _updated(
    split: KernelSplit, stored: GramInMemory, wanted: GramOrigin, memory_limit: int | str | None
) -> Gram | None:
    """Bring a stored gram up to date: add the rows that were appended since, take out masked ones.

    Returns None where it has to be computed again: a row was unmasked, or so many were masked that the
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
        # Rows that are masked now have weight 0. They leave with the weight that they had before.
        weights = row_weights(split, without=stored.masked_positions)
        old = None if weights is None else TakenRows(weights, gone)
        less = gram(TakenRows(features, gone), old, dtype="float64", memory_limit=memory_limit)
        result = _sum(result, less, -1)
    return result


def _sum(left: Gram, right: Gram, sign: int) -> Gram:
    matrix = left.matrix + sign * right.matrix
    return replace(left, matrix=matrix, trace=float(np.trace(matrix)))


@dataclass(frozen=True, eq=False)
class GramDocument:
    """A gram in the store, as its document describes it.

    Attributes
    ----------
    origin : GramOrigin
        Its ``dtype`` is the wanted one also where the products are of float64, so that it compares
        equal to the wanted origin; ``dtype`` below is the real one.
    used : int
        Number of unmasked rows, those of weight 0 included.
    trace : float
    dtype : {"float32", "float64"}
        Dtype of its products.
    arrays : dict of str to SavedArray
        ``gram``, and ``masked`` where rows were left out.
    """

    origin: GramOrigin
    used: int
    trace: float
    dtype: GramDtype
    arrays: dict[str, SavedArray]


def stored_gram(split: KernelSplit, wanted: GramOrigin) -> GramDocument | None:
    """Return the stored gram of a split if it has no more rows than wanted; None if none can be used.

    A damaged one counts as none: it is computed again.
    """
    try:
        document = read_table(split.location, _path(split))
        if not document:
            return None
        known = fields({k: v for k, v in document.items() if k in _FIELDS}, _FIELDS)
        if known["used"] > known["rows"] or known["masked"] > known["rows"]:
            return None
        origin = GramOrigin(**{name: known[name] for name in asdict(wanted)})
        arrays = table_arrays(document)
        # A gram of format 1 has no checksums: its chunks may be of any matrix.
        if arrays["gram"].tails is None or arrays["gram"].shape != (_dim(split),) * 2:
            return None
    except (KeyError, TypeError, ValueError, OSError):
        return None
    same = (origin.nonce, origin.weighting) == (wanted.nonce, wanted.weighting)
    if not same or origin.dtype not in (wanted.dtype, "float64") or origin.rows > wanted.rows:
        return None
    used, trace = known["used"], known["trace"]
    return GramDocument(replace(origin, dtype=wanted.dtype), used, trace, origin.dtype, arrays)


_FIELDS = {
    **dict.fromkeys(("nonce", "masked", "used"), whole()),
    "rows": whole(1),
    **dict.fromkeys(("masked_digest", "weighting"), text()),
    "dtype": one_of("float32", "float64"),
    "trace": number(),
}


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
    """Store a gram, unless the place cannot be written, or another process writes it."""
    place, path = split.location, _path(split)
    try:
        with claimed(place, path, "kernel"):
            pending = start_gram(split)
            gram_array(_dim(split)).write(place, path, made.matrix)
            publish(split, pending, replace(wanted, dtype=made.dtype), made.rows, made.trace)
    except (OSError, ValueError):
        # A query also works on a store that it may not write to; the gram is computed again next time.
        return


def start_gram(split: KernelSplit) -> bytes:
    """Make an empty array for the split's gram; one that was there is gone.

    Returns
    -------
    bytes
        The pending document, by which :func:`publish` sees that no other process began the same gram.
    """
    return begin_table(split.location, _path(split), [gram_array(_dim(split))])


def publish(
    split: KernelSplit, pending: bytes, origin: GramOrigin, used: int, trace: float
) -> None:
    """Write the document of a stored gram, last of all.

    Nothing is written if, since the split was opened, rows were appended or masked, or the split was
    replaced: the gram would not be that of the split as it now is.

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


def gram_array(dim: int) -> SavedArray:
    """Describe the array of a gram of ``dim`` features."""
    chunk = min(dim, GRAM_CHUNK)
    return SavedArray("gram", "float64", (dim, dim), (chunk, chunk), ("feature", "feature_2"))


def _path(split: KernelSplit) -> str:
    return layout.gram_path(split.epoch, split.name, weighting_of(split))


def _dim(split: KernelSplit) -> int:
    """Return the columns of the split's features, and so of their gram."""
    return split.column(layout.FEATURES).shape[1]

"""Grams kept in the store: read where valid, brought up to date where rows came or went."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TypeAlias

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
from trakstore.storage.backends.location import Location
from trakstore.storage.claims import claimed
from trakstore.storage.snapshots import is_current
from trakstore.storage.tables.saved_arrays import SavedArray
from trakstore.storage.tables.saved_table import (
    begin_table,
    publish_table,
    read_table,
    table_arrays,
)

__all__ = [
    "GRAM_CHUNK",
    "GramOrigin",
    "ReadGram",
    "StoredGram",
    "gram_array",
    "grams_ready",
    "origin_of",
    "publish",
    "read_gram",
    "split_gram",
    "start_gram",
    "stored_gram",
    "write_gram",
]

GRAM_CHUNK = 1024  # rows and columns of a chunk: 8 MB
MASKED_SHARE = 0.1  # of the rows: beyond, a gram is computed again instead of downdated


@dataclass(frozen=True)
class GramOrigin:
    """What a gram was computed from, as its attributes in the store say.

    Attributes
    ----------
    nonce : int
        Of the split.
    rows : int
        Rows of the split, masked ones included.
    masked : int
        Rows that were left out.
    masked_digest : str
        SHA-256 of their positions (int64, little-endian, ascending); ``""`` for none.
    dtype : {"float32", "float64"}
        Of the products.
    weighting : str
        How rows are weighted, as of a :class:`WeightedSplit`; ``""`` where each counts as one.
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
) -> Gram:
    """K = ΦᵀΦ of a split's features, without its masked rows: the stored one where it is valid.

    A stored gram of fewer rows of the same split gets the rows that were appended; one with fewer
    masked rows is downdated in float64. Otherwise it is computed. What is new is stored, unless the
    place cannot be written.

    Parameters
    ----------
    split : Split
        Complete.
    dtype : {"float32", "float64"}
        Of the products within a tile; a stored gram of float64 products serves both.
    memory_limit : int or str, optional
        Bytes of one process.

    Raises
    ------
    NumericsError
        Features that are not finite.
    MemoryLimitError
        The gram does not fit.
    """
    wanted = origin_of(split, dtype)
    stored = _READY.grams.pop(_at(split, wanted), None) or read_gram(split, wanted)
    if stored is not None and stored.origin == wanted:
        return stored.gram
    made = None if stored is None else _updated(split, stored, wanted, memory_limit)
    if made is None:
        rows, weights = split.column(layout.FEATURES), row_weights(split)
        made = gram(rows, weights, dtype=dtype, memory_limit=memory_limit)
        made = replace(made, rows=unmasked_count(split))
    write_gram(split, made, wanted)
    return made


class _Ready(threading.local):
    """Grams that are there before they are asked for, by place and origin."""

    def __init__(self) -> None:
        self.grams: dict[_At, ReadGram] = {}


_At: TypeAlias = tuple[Location, str, GramOrigin]
_READY = _Ready()


@contextmanager
def grams_ready(grams: Sequence[tuple[KernelSplit, GramOrigin, ReadGram]]) -> Iterator[None]:
    """Within, :func:`split_gram` in this thread has these, as they were read or just made."""
    keys = [_at(split, wanted) for split, wanted, _ in grams]
    _READY.grams.update(zip(keys, (one for *_, one in grams), strict=True))
    try:
        yield
    finally:
        for key in keys:
            _READY.grams.pop(key, None)


def _at(split: KernelSplit, wanted: GramOrigin) -> _At:
    return split.location, _path(split), wanted


def origin_of(split: KernelSplit, dtype: GramDtype) -> GramOrigin:
    """What a gram of this split, as it is now, is computed from."""
    masked = masked_rows(split)
    digest = hashlib.sha256(masked.astype("<i8").tobytes()).hexdigest() if len(masked) else ""
    nonce, weighting = split.spec.nonce, weighting_of(split)
    return GramOrigin(nonce, split.rows, len(masked), digest, dtype, weighting)


def _updated(
    split: KernelSplit, stored: ReadGram, wanted: GramOrigin, memory_limit: int | str | None
) -> Gram | None:
    """The stored gram with rows that were appended and without rows that were masked since."""
    now = masked_rows(split)
    gone = np.setdiff1d(now[now < stored.origin.rows], stored.masked)
    if len(np.setdiff1d(stored.masked, now)) or len(gone) > MASKED_SHARE * stored.gram.rows:
        return None
    features, result = split.column(layout.FEATURES), stored.gram
    if stored.origin.rows < wanted.rows:
        added, weights = range(stored.origin.rows, wanted.rows), row_weights(split)
        new = None if weights is None else TakenRows(weights, added)
        more = gram(TakenRows(features, added), new, dtype=result.dtype, memory_limit=memory_limit)
        result = _sum(result, more, 1)
    if len(gone):
        weights = row_weights(split, without=stored.masked)
        old = None if weights is None else TakenRows(weights, gone)
        less = gram(TakenRows(features, gone), old, dtype="float64", memory_limit=memory_limit)
        result = _sum(result, less, -1)
    return replace(result, rows=unmasked_count(split))


def _sum(left: Gram, right: Gram, sign: int) -> Gram:
    matrix = left.matrix + sign * right.matrix
    return replace(left, matrix=matrix, trace=float(np.trace(matrix)))


@dataclass(frozen=True, eq=False)
class StoredGram:
    """A gram that is kept, as its document says.

    Attributes
    ----------
    origin : GramOrigin
        What it was computed from; products of float64 count as those that were wanted.
    used : int
        Rows that entered.
    trace : float
    dtype : {"float32", "float64"}
        Of its products.
    arrays : dict of str to SavedArray
        ``gram``, and ``masked`` where rows were left out.
    """

    origin: GramOrigin
    used: int
    trace: float
    dtype: GramDtype
    arrays: dict[str, SavedArray]


def stored_gram(split: KernelSplit, wanted: GramOrigin) -> StoredGram | None:
    """The stored gram of a split, of as many rows or fewer; None where none can be used."""
    try:
        what = read_table(split.location, _path(split))
        if not what:
            return None
        known = fields({k: v for k, v in what.items() if k in _GRAM}, _GRAM, ("weighting",))
        if known["used"] > known["rows"] or known["masked"] > known["rows"]:
            return None
        origin = GramOrigin(**{name: what[name] for name in asdict(wanted)})
        arrays = table_arrays(what)
        if arrays["gram"].tails is None or arrays["gram"].shape != (_dim(split),) * 2:
            return None  # of format 1: its chunks may be of any matrix
        found = StoredGram(origin, what["used"], what["trace"], origin.dtype, arrays)
    except (KeyError, TypeError, ValueError, OSError):
        return None  # a damaged one is computed again
    same = (origin.nonce, origin.weighting) == (wanted.nonce, wanted.weighting)
    usable = same and origin.dtype in (wanted.dtype, "float64") and origin.rows <= wanted.rows
    return replace(found, origin=replace(origin, dtype=wanted.dtype)) if usable else None


_GRAM = {
    **dict.fromkeys(("nonce", "masked", "used"), whole()),
    "rows": whole(1),
    **dict.fromkeys(("masked_digest", "weighting"), text()),
    "dtype": one_of("float32", "float64"),
    "trace": number(),
}


@dataclass(frozen=True, eq=False)
class ReadGram:
    """A gram, what it was computed from, and the positions of the rows that were left out."""

    gram: Gram
    origin: GramOrigin
    masked: NDArray[np.int64]


def read_gram(split: KernelSplit, wanted: GramOrigin) -> ReadGram | None:
    """The stored gram if it is whole and of this split; a damaged one counts as none."""
    found = stored_gram(split, wanted)
    if found is None:
        return None
    place, path = split.location, _path(split)
    try:
        matrix = np.asarray(found.arrays["gram"].read(place, path), dtype=np.float64)
        masked = masked_rows(split) if found.origin == wanted else _masked(found, place, path)
    except (KeyError, ValueError, OSError):
        return None
    kept = Gram(matrix, found.used, found.trace, found.dtype)
    return ReadGram(kept, found.origin, masked)


def _masked(found: StoredGram, place: Location, path: str) -> NDArray[np.int64]:
    """Positions of the rows that were left out of a stored gram."""
    if not found.origin.masked:
        return np.empty(0, dtype=np.int64)
    return np.asarray(found.arrays["masked"].read(place, path), dtype=np.int64)


def write_gram(split: KernelSplit, made: Gram, wanted: GramOrigin) -> None:
    """Store a gram, unless the place cannot be written, or another process writes it."""
    place, path = split.location, _path(split)
    try:
        with claimed(place, path, "kernel"):
            begun = start_gram(split)
            gram_array(_dim(split)).open_to_write(place, path)[:] = made.matrix
            publish(split, begun, replace(wanted, dtype=made.dtype), made.rows, made.trace)
    except (OSError, ValueError):
        return  # it is computed again next time


def start_gram(split: KernelSplit) -> bytes:
    """Make an empty array for the split's gram; one that was there is gone.

    Returns
    -------
    bytes
        For :func:`publish`.
    """
    return begin_table(split.location, _path(split), [gram_array(_dim(split))])


def publish(split: KernelSplit, begun: bytes, origin: GramOrigin, used: int, trace: float) -> None:
    """Write what a stored gram is and was computed from, last of all.

    Nothing is written where rows came or were masked, or the split was replaced, since it was opened:
    the gram is none of the split as it is.

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
    what = {**asdict(origin), "used": used, "trace": trace}
    publish_table(place, path, list(arrays.values()), what, instead_of=begun)


def gram_array(dim: int) -> SavedArray:
    """The array of a gram of ``dim`` features."""
    chunk = min(dim, GRAM_CHUNK)
    return SavedArray("gram", "float64", (dim, dim), (chunk, chunk), ("feature", "feature_2"))


def _path(split: KernelSplit) -> str:
    return layout.gram_path(split.epoch, split.name, weighting_of(split))


def _dim(split: KernelSplit) -> int:
    """Columns of the split's features, and so of their gram."""
    return split.column(layout.FEATURES).shape[1]

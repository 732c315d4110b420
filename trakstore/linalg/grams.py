"""Grams kept in the store: read where valid, brought up to date where rows came or went."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trakstore.documents import fields, number, one_of, text, whole
from trakstore.linalg.gram import Gram, GramDtype, gram
from trakstore.linalg.rows import TakenRows
from trakstore.linalg.weights import (
    GramSplit,
    masked_rows,
    row_weights,
    unmasked_count,
    weighting_of,
)
from trakstore.storage import layout
from trakstore.storage.checksums import TAIL
from trakstore.storage.locations import Location
from trakstore.storage.saved import ARRAYS, SavedArray
from trakstore.storage.splits import attributes, group_document

__all__ = [
    "GRAM_CHUNK",
    "GramOrigin",
    "gram_arrays",
    "origin_of",
    "publish",
    "split_gram",
    "start_gram",
    "stored_origin",
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
    split: GramSplit,
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
    stored = _read(split, wanted)
    if stored is not None and stored.origin == wanted:
        return stored.gram
    made = None if stored is None else _updated(split, stored, wanted, memory_limit)
    if made is None:
        rows, weights = split.column(layout.FEATURES), row_weights(split)
        made = gram(rows, weights, dtype=dtype, memory_limit=memory_limit)
        made = replace(made, rows=unmasked_count(split))
    _write(split, made)
    return made


def origin_of(split: GramSplit, dtype: GramDtype) -> GramOrigin:
    """What a gram of this split, as it is now, is computed from."""
    masked = masked_rows(split)
    digest = hashlib.sha256(masked.astype("<i8").tobytes()).hexdigest() if len(masked) else ""
    nonce, weighting = split.spec.nonce, weighting_of(split)
    return GramOrigin(nonce, split.rows, len(masked), digest, dtype, weighting)


@dataclass(frozen=True, eq=False)
class _Stored:
    gram: Gram
    origin: GramOrigin
    masked: NDArray[np.int64]


def _updated(
    split: GramSplit, stored: _Stored, wanted: GramOrigin, memory_limit: int | str | None
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


def _read(split: GramSplit, wanted: GramOrigin) -> _Stored | None:
    """The stored gram if it is whole and of this split; a damaged one counts as none."""
    place, path = split.location, _path(split)
    found = stored_origin(split, wanted)
    if found is None:
        return None
    origin, what = found
    try:
        of_gram, *of_masked = gram_arrays(_dim(split), origin.masked)
        matrix = np.asarray(of_gram.open(place, path)[:], dtype=np.float64)
        masked = of_masked[0].open(place, path)[:] if of_masked else ()
    except (ValueError, OSError):
        return None
    kept = Gram(matrix, what["used"], what["trace"], what["dtype"])
    return _Stored(kept, origin, np.asarray(masked, dtype=np.int64))


def stored_origin(split: GramSplit, wanted: GramOrigin) -> tuple[GramOrigin, dict[str, Any]] | None:
    """What the stored gram was computed from, and its attributes; None where none can be used.

    Products of float64 are as good as those of float32 that were wanted.
    """
    place, path = split.location, _path(split)
    try:
        document = place.get(layout.document_key(path))
        what = {} if document is None else attributes(document, path)
        known = fields({k: v for k, v in what.items() if k in _GRAM}, _GRAM, ("weighting",))
        if known["used"] > known["rows"] or known["masked"] > known["rows"]:
            return None
        origin = GramOrigin(
            **{"weighting": "", **{k: what[k] for k in asdict(wanted) if k in what}}
        )
        same = (origin.nonce, origin.weighting) == (wanted.nonce, wanted.weighting)
        usable = same and origin.dtype in (wanted.dtype, "float64")
        if not usable or origin.rows > wanted.rows:
            return None
        if what["digest"] != _digest(place, path, _dim(split)):
            return None
    except (KeyError, TypeError, ValueError, OSError):
        return None
    return replace(origin, dtype=wanted.dtype), what


_GRAM = {
    **dict.fromkeys(("nonce", "masked", "used"), whole()),
    "rows": whole(1),
    **dict.fromkeys(("masked_digest", "weighting", "digest"), text()),
    "dtype": one_of("float32", "float64"),
    "trace": number(),
}


def _write(split: GramSplit, made: Gram) -> None:
    place, path = split.location, _path(split)
    try:
        array = start_gram(split)
        array.open(place, path, "r+")[:] = made.matrix
        publish(split, made.rows, made.trace, made.dtype)
    except (OSError, ValueError):
        return  # a place that cannot be written: the gram is computed again next time


def start_gram(split: GramSplit) -> SavedArray:
    """An empty array for the split's gram; a gram that was there is gone until :func:`publish`."""
    place, path = split.location, _path(split)
    place.delete([layout.document_key(path)])
    array = gram_arrays(_dim(split))[0]
    array.create(place, path)
    return array


def publish(split: GramSplit, used: int, trace: float, dtype: GramDtype) -> None:
    """Write what a stored gram is: its arrays and the checksums of its chunks, last of all."""
    place, path = split.location, _path(split)
    masked, dim = masked_rows(split), _dim(split)
    arrays = gram_arrays(dim, len(masked))
    for array in arrays[1:]:
        array.create(place, path)
        array.open(place, path, "r+")[:] = masked
    what = asdict(origin_of(split, dtype)) | {
        "used": used,
        "trace": trace,
        "digest": _digest(place, path, dim),
        ARRAYS: [array.to_dict() for array in arrays],
    }
    place.put({layout.document_key(path): group_document(what)})


def gram_arrays(dim: int, masked: int = 0) -> list[SavedArray]:
    """The gram's array, and where rows are left out that of their positions."""
    chunk = min(dim, GRAM_CHUNK)
    names = ("feature", "feature_2")
    arrays = [SavedArray("gram", "float64", (dim, dim), (chunk, chunk), names)]
    if masked:
        arrays.append(SavedArray("masked", "int64", (masked,), (masked,), ("masked_row",)))
    return arrays


def _path(split: GramSplit) -> str:
    return layout.gram_path(split.epoch, split.name, weighting_of(split))


def _dim(split: GramSplit) -> int:
    """Columns of the split's features, and so of their gram."""
    return split.column(layout.FEATURES).shape[1]


def _digest(place: Location, path: str, dim: int) -> str:
    """SHA-256 of the checksums that end the chunks of a gram, row by row."""
    blocks = range(-(-dim // GRAM_CHUNK))
    tails = place.get_tails([f"{path}/gram/c/{i}/{j}" for i in blocks for j in blocks], TAIL)
    return hashlib.sha256(b"".join(tail or b"none" for tail in tails)).hexdigest()

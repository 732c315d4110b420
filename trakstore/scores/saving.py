"""Score matrices in a store: streamed to Zarr tile by tile, whole or in part, opened lazily."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr
from dask.base import tokenize
from numpy.typing import NDArray
from scipy.sparse import csr_array

from trakstore.errors import (
    DamagedError,
    NotFoundError,
    TrakStoreError,
    did_you_mean,
    error_context,
)
from trakstore.passes.rows import Rows
from trakstore.planning import CHUNK_BYTES, ranges
from trakstore.scores.entries import (
    Begun,
    begin_save,
    check_kept,
    save_above,
    save_top,
    written_chunks,
)
from trakstore.scores.factored import Scores, need_scores
from trakstore.scores.narrowing import narrowed
from trakstore.scores.streaming import for_each_tile, plan_windows
from trakstore.storage import layout
from trakstore.storage.backends.location import Location, Where
from trakstore.storage.claims import claimed
from trakstore.storage.opening import open_store
from trakstore.storage.store import FeatureStore
from trakstore.storage.tables.saved_arrays import SavedArray
from trakstore.storage.tables.saved_table import (
    ARRAYS,
    PLACE,
    delete_table,
    publish_table,
    read_table,
    table_arrays,
    table_names,
)

__all__ = [
    "check_new_name",
    "drop_scores",
    "names_of_scores",
    "open_scores",
    "save_scores",
    "scores_token",
    "sparse_scores",
]


def save_scores(
    scores: Scores,
    store: Where | FeatureStore,
    name: str,
    *,
    top: int | None = None,
    threshold: float | None = None,
    dtype: Literal["float32", "float16"] = "float32",
    memory_limit: int | str | None = None,
    overwrite: bool = False,
) -> xr.DataArray | xr.Dataset:
    """Write the score matrix to ``scores/{name}`` of a store, without ever holding it.

    Parameters
    ----------
    scores : Scores, shape (m, n)
    store : FeatureStore or its place
    name : str
        A new name. What a save of the same scores that was stopped left under it is kept: only the
        chunks that are missing are computed; of a part of the matrix, the windows of targets.
    top : int, optional
        Keep the so many scores of largest magnitude of each target only.
    threshold : float, optional
        Keep the scores with |score| >= threshold only.
    dtype : {"float32", "float16"}
        As stored.
    memory_limit : int or str, optional
        Bytes of one process; a quarter of the available memory when None.
    overwrite : bool
        Delete complete scores of that name first.

    Returns
    -------
    DataArray or Dataset
        As :func:`open_scores` gives it.

    Raises
    ------
    TrakStoreError
        When the name is taken, without ``overwrite``; ``top`` or ``threshold`` out of range, or both.
    NumericsError
        When a score is not finite, or scores are too large or too small for ``dtype``.
    MemoryLimitError
        When one target and one tile do not fit, or too many scores pass the threshold.
    LocationError
        When another process saves under that name just now.
    """
    need_scores(scores)
    if dtype not in ("float32", "float16"):
        raise TrakStoreError(f"scores are saved as float32 or float16, got {dtype!r}")
    top, threshold = check_kept(scores, top, threshold)
    if not overwrite:
        check_new_name(store, name)
    location, path = open_store(store).location, layout.scores_path(name)
    with claimed(location, path, "save"):
        if not overwrite:
            check_new_name(store, name)
        elif read_table(location, path):
            delete_table(location, path)
        _save(scores, location, path, top, threshold, dtype, memory_limit)
    return open_scores(store, name)


def _save(
    scores: Scores,
    location: Location,
    path: str,
    top: int | None,
    threshold: float | None,
    dtype: str,
    memory_limit: int | str | None,
) -> None:
    token, kept = scores_token(scores), {"top": top, "threshold": threshold}
    ids = {"target": scores.target_ids, "train": scores.train_ids}
    if top is not None:
        begun = save_top(scores, location, path, top, token, dtype, memory_limit)
        del ids["train"]  # they are in the lists
    elif threshold is not None:
        token = str(tokenize(token, threshold))
        begun = save_above(scores, location, path, threshold, token, dtype, memory_limit)
    else:
        begun = _save_matrix(scores, location, path, token, dtype, memory_limit)
    arrays = begun.arrays + [_save_ids(location, path, rows, dim) for dim, rows in ids.items()]
    what = {
        "method": scores.method,
        "epochs": list(scores.epochs),
        "average": scores.average,
        "lambda": [part.factor and part.factor.damping for part in scores.parts],
        "weighting": [part.kernel for part in scores.parts],
        **{name: value for name, value in kept.items() if value is not None},
    }
    publish_table(location, path, arrays, what, instead_of=begun.document)


def _save_matrix(
    scores: Scores,
    location: Location,
    path: str,
    token: str,
    dtype: str,
    memory_limit: int | str | None,
) -> Begun:
    """All of it, in chunks of about 8 MB that span several targets and several train rows.

    A chunk is written whole, by one task, and is there or not: no marker is needed.
    """
    rows, columns = scores.shape
    width = min(columns, scores.tile_rows)
    height = max(1, min(rows, CHUNK_BYTES // (np.dtype(dtype).itemsize * width)))
    height = -(-rows // -(-rows // height))  # even, so that windows may hold all targets
    plan = plan_windows(scores, "streaming scores", memory_limit, align=height)
    height = min(height, plan.targets)  # a chunk is written once, by one task
    made = SavedArray("scores", dtype, scores.shape, (height, width), scores.dims)
    begun = begin_save(location, path, [made], token, plan.targets)
    made = begun.arrays[0]
    height = made.chunks[0]
    done = written_chunks(location, path, made)
    save, skip = _SaveTile(location, path, made), _Skip(done, height, width)
    for_each_tile(scores, save, memory_limit, align=height, skip=skip)
    return begun


def check_new_name(store: Where | FeatureStore, name: str) -> None:
    """Raise a :class:`TrakStoreError` when the store has complete scores of that name."""
    location = open_store(store).location
    if read_table(location, layout.scores_path(name)):
        raise TrakStoreError(
            f"{location} has scores named {name!r}; choose another name, or replace them "
            f"(overwrite=True, --overwrite)"
        )


def drop_scores(store: Where | FeatureStore, name: str) -> None:
    """Delete saved scores from the disk, or what a save that was stopped left of them.

    Parameters
    ----------
    store : FeatureStore or its place
    name : str

    Raises
    ------
    NotFoundError
        When nothing has that name.
    LocationError
        When another process saves under that name just now.
    """
    location, path = open_store(store).location, layout.scores_path(name)
    if location.get(layout.document_key(path)) is None:
        near = did_you_mean(name, names_of_scores(location))
        raise NotFoundError(f"{location} has no scores {name!r}{near}")
    with claimed(location, path, "drop"):
        delete_table(location, path)


def scores_token(scores: Scores) -> str:
    """Equal for scores that are the same function of the same stored rows."""
    tokens = [
        (
            str(part.epoch),
            part.weight,
            part.kernel,
            part.factor and (type(part.factor).__name__, part.factor.damping),
            *(rows and rows.token for rows in (part.target, part.train)),
            *(rows and rows.token for rows in (part.row_scale, part.column_scale)),
        )
        for part in scores.parts
    ]
    how = (scores.method, scores.reduce, scores.average, scores.soft_threshold)
    return str(tokenize(*how, scores.shape, tokens))


@dataclass(frozen=True)
class _Skip:
    done: frozenset[tuple[int, ...]]
    height: int
    width: int

    def __call__(self, t0: int, t1: int, n0: int, n1: int) -> bool:
        tops = range(t0 // self.height, -(-t1 // self.height))
        lefts = range(n0 // self.width, -(-n1 // self.width))
        return all((i, j) in self.done for i in tops for j in lefts)


def open_scores(store: Where | FeatureStore, name: str) -> xr.DataArray | xr.Dataset:
    """Saved scores, lazy.

    Returns
    -------
    DataArray
        Of a whole matrix: dims ``("target", "train")``, ids as coordinates.
    Dataset
        Of the ``top`` of each target: ``score``, ``train`` (ids) and ``position`` with dims
        ``("target", "rank")``, as :func:`top_k` gives it. Of those above a ``threshold``: ``score``
        and ``column`` with the dim ``"entry"``, target after target, and ``stop``, where each
        target's entries end; :func:`sparse_scores` makes a SciPy matrix of it.

    Raises
    ------
    NotFoundError
        When no complete matrix has that name.
    """
    location, path, described = _found(store, name)
    where = f"{location}: the saved scores {name!r}"
    with error_context(where):
        arrays = table_arrays(described)
    found = {
        one: (array.dimensions, array.open(location, path).to_dask())
        for one, array in arrays.items()
    }
    described = {name: what for name, what in described.items() if name not in (ARRAYS, PLACE)}
    coords = {one: found.pop(one) for one in ("target_id", "train_id") if one in found}
    try:
        if "scores" in found:
            dims, matrix = found["scores"]
            return xr.DataArray(matrix, dims=dims, coords=coords, name=name, attrs=described)
        if "score" in found:
            return xr.Dataset(found, coords=coords, attrs=described)
    except ValueError as error:
        raise DamagedError(f"{where} have arrays that do not fit together ({error})") from error
    raise DamagedError(f"{where} have no scores among their arrays: {sorted(found)}")


def sparse_scores(store: Where | FeatureStore, name: str) -> csr_array:
    """Scores saved with a ``threshold`` as a SciPy matrix (target, train), in memory.

    Raises
    ------
    NotFoundError
        When no complete matrix has that name.
    TrakStoreError
        When they were saved otherwise.
    """
    saved = open_scores(store, name)
    if not isinstance(saved, xr.Dataset) or "stop" not in saved:
        raise TrakStoreError(f"scores {name!r} were not saved with a threshold: use open_scores")
    shape = (saved.sizes["target"], saved.sizes["train"])
    score = saved["score"].values.astype(np.float32)  # SciPy has no float16
    ends = np.concatenate([[0], saved["stop"].values])
    return csr_array((score, saved["column"].values, ends), shape=shape)


def _found(store: Where | FeatureStore, name: str) -> tuple[Location, str, dict[str, Any]]:
    location, path = open_store(store).location, layout.scores_path(name)
    described = read_table(location, path)
    if not described:
        near = did_you_mean(name, names_of_scores(location))
        raise NotFoundError(f"{location} has no scores {name!r}{near}")
    return location, path, described


def names_of_scores(location: Location) -> list[str]:
    """Names of the complete scores that are saved."""
    names = table_names(location, layout.SCORES)
    return [name for name in names if read_table(location, layout.child(layout.SCORES, name))]


@dataclass(frozen=True)
class _SaveTile:
    location: Location
    path: str
    array: SavedArray

    def __call__(self, t0: int, t1: int, n0: int, n1: int, tile: NDArray[Any]) -> None:
        what = f"scores of targets {t0}..{t1} with train rows {n0}..{n1}"
        stored = narrowed(tile, self.array.dtype, what)
        self.array.write_chunks(self.location, self.path, (t0, n0), stored)


def _save_ids(location: Location, path: str, ids: Rows, dim: str) -> SavedArray:
    dtype = "str" if ids.dtype.kind in "TUO" else "int64"
    chunk = min(ids.shape[0], CHUNK_BYTES // 8)
    made = SavedArray(f"{dim}_id", dtype, ids.shape, (chunk,), (dim,))
    made.create(location, path)
    column = made.open_to_write(location, path)
    for start, stop in ranges(ids.shape[0], chunk):
        column[start:stop] = ids.read(start, stop)
    return made

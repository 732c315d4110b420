"""Score matrices in a store: streamed to Zarr tile by tile, whole or in part, opened lazily."""

from __future__ import annotations

from functools import partial
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
from trakstore.quantities import as_flag, is_one_of
from trakstore.scores.entries import check_kept, save_above, save_top
from trakstore.scores.factored import Scores
from trakstore.scores.needed import need_scores, need_some_scores
from trakstore.scores.save import Begun, Save, narrowed
from trakstore.scores.streaming import for_each_tile
from trakstore.scores.window_plans import plan_windows
from trakstore.storage import layout
from trakstore.storage.backends.location import Location, Where
from trakstore.storage.claims import claimed
from trakstore.storage.group_documents import COORDINATES, PLACE
from trakstore.storage.opening import open_store
from trakstore.storage.store import FeatureStore
from trakstore.storage.tables.saved_arrays import SavedArray
from trakstore.storage.tables.saved_table import (
    ARRAYS,
    delete_table,
    publish_table,
    read_table,
    table_arrays,
    table_names,
)


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
        Scores to write, of m targets and n train rows.
    store : FeatureStore or its place
        Existing store; it need not be the one that the scores are made from.
    name : str
        A new name. A stopped save of the same scores under this name is continued: only missing chunks
        are computed or, for a part of the matrix, missing windows of targets.
    top : int, optional
        Number of scores of largest magnitude to keep of each target; all by default.
    threshold : float, optional
        Least magnitude: only scores with ``|score| >= threshold`` are kept.
    dtype : {"float32", "float16"}
        Stored dtype.
    memory_limit : int or str, optional
        Bytes of one process; a quarter of the available memory when None.
    overwrite : bool
        Whether to delete complete scores of that name first.

    Returns
    -------
    DataArray or Dataset
        Saved scores, as :func:`open_scores` returns them.

    Raises
    ------
    TrakStoreError
        When the name is taken and ``overwrite`` is false, or ``top`` or ``threshold`` is out of range,
        or both are given.
    NumericsError
        When a score is not finite, or scores are too large or too small for ``dtype``.
    MemoryLimitError
        When one target and one tile do not fit, or too many scores pass the threshold.
    LocationError
        When another process is saving under that name.

    Examples
    --------
    >>> ts.save_scores(ts.trak_scores(store), store, "trak", overwrite=True).sizes
    Frozen({'target': 6, 'train': 24})
    >>> ts.save_scores(ts.trak_scores(store), store, "trak-top", top=5, overwrite=True).sizes
    Frozen({'target': 6, 'rank': 5})
    """
    need_scores(scores)
    need_some_scores(scores)
    if not is_one_of(dtype, ("float32", "float16")):
        raise TrakStoreError(f"scores are saved as float32 or float16, got {dtype!r}")
    overwrite = as_flag(overwrite, "overwrite")
    top, threshold = check_kept(scores, top, threshold)
    if not overwrite:
        check_new_name(store, name)
    location, path = open_store(store).location, layout.scores_path(name)
    with claimed(location, path, "save"):
        if not overwrite:
            check_new_name(store, name)
        # Only complete scores are deleted: what a stopped save left may be continued.
        elif read_table(location, path):
            delete_table(location, path)
        token = scores_token(scores)
        if threshold is not None:
            # Entries above one threshold cannot be continued with another.
            token = str(tokenize(token, threshold))
        _save(Save(scores, location, path, token, dtype, memory_limit), top, threshold)
    return open_scores(store, name)


def _save(save: Save, top: int | None, threshold: float | None) -> None:
    scores, kept = save.scores, {"top": top, "threshold": threshold}
    ids = {"target": scores.target_ids, "train": scores.train_ids}
    if top is not None:
        begun = save_top(save, top)
        # The lists hold the train ids.
        del ids["train"]
    elif threshold is not None:
        begun = save_above(save, threshold)
    else:
        begun = _save_matrix(save)
    # The ids come last: they cost little, and a continued save writes them again.
    arrays = begun.arrays + [_save_ids(save, rows, dim) for dim, rows in ids.items()]
    document = {
        COORDINATES: " ".join(f"{dim}_id" for dim in ids),
        "method": scores.method,
        "epochs": list(scores.epochs),
        "average": scores.average,
        "lambda": [part.factor and part.factor.damping for part in scores.parts],
        "weighting": [part.kernel for part in scores.parts],
        **{name: value for name, value in kept.items() if value is not None},
    }
    publish_table(save.location, save.path, arrays, document, instead_of=begun.document)


def _save_matrix(save: Save) -> Begun:
    """Write the whole matrix, in chunks of about 8 MB that span several targets and train rows.

    A chunk is written whole, by one task, so that it exists or not: no marker is needed.
    """
    scores, (rows, columns) = save.scores, save.scores.shape
    width = min(columns, scores.tile_rows)
    height = max(1, min(rows, CHUNK_BYTES // (np.dtype(save.dtype).itemsize * width)))
    # The height of chunks is even, so that a window may hold all targets, and at most that of a window,
    # so that each chunk is written once, by one task.
    height = -(-rows // -(-rows // height))
    plan = plan_windows(scores.sizes, "streaming scores", save.memory_limit, align=height)
    height = min(height, plan.targets)
    made = SavedArray("scores", save.dtype, scores.shape, (height, width), scores.dims)
    begun = save.begin([made], plan.targets)
    made = begun.arrays[0]
    write = partial(_write_tile, made, save.location, save.path)
    skip = partial(_is_written, save.written(made), made.chunks)
    for_each_tile(scores, write, save.memory_limit, align=made.chunks[0], skip=skip)
    return begun


def check_new_name(store: Where | FeatureStore, name: str) -> None:
    """Raise a :class:`TrakStoreError` if the store has complete scores of that name."""
    location = open_store(store).location
    if read_table(location, layout.scores_path(name)):
        raise TrakStoreError(
            f"{location} has scores named {name!r}; choose another name, or replace them "
            f"(overwrite=True, --overwrite)"
        )


def drop_scores(store: Where | FeatureStore, name: str) -> None:
    """Delete saved scores, or the remains of a save that stopped.

    Parameters
    ----------
    store : FeatureStore or its place
        Store that holds the scores.
    name : str
        Name under which they were saved.

    Raises
    ------
    NotFoundError
        When there is nothing of that name.
    LocationError
        When another process is saving under that name.

    Examples
    --------
    >>> saved = ts.save_scores(ts.grad_dot_scores(store), store, "for-now")
    >>> ts.drop_scores(store, "for-now")
    >>> ts.open_scores(store, "for-now")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    trakstore.errors.NotFoundError: memory://examples has no scores 'for-now'...
    """
    location, path = open_store(store).location, layout.scores_path(name)
    if location.get(layout.document_key(path)) is None:
        raise _no_scores(location, name)
    with claimed(location, path, "drop"):
        delete_table(location, path)


def scores_token(scores: Scores) -> str:
    """Return a text that is equal for scores that are the same function of the same stored rows."""
    tokens = [
        (
            str(part.epoch),
            part.weight,
            # Scores that were saved before epochs had lengths must keep their token.
            *((part.length,) if part.length != 1 else ()),
            part.kernel,
            part.factor and (type(part.factor).__name__, part.factor.damping),
            *(rows and rows.token for rows in (part.target, part.train)),
            *(rows and rows.token for rows in (part.row_scale, part.column_scale)),
        )
        for part in scores.parts
    ]
    how = (scores.method, scores.reduce, scores.average, scores.soft_threshold)
    sampled = [part.train.token for part in scores.threshold_parts]
    return str(tokenize(*how, scores.shape, tokens, *sampled))


def _is_written(
    done: frozenset[tuple[int, ...]], chunks: tuple[int, ...], t0: int, t1: int, n0: int, n1: int
) -> bool:
    """Tell whether all chunks of a block are written."""
    height, width = chunks
    tops, lefts = range(t0 // height, -(-t1 // height)), range(n0 // width, -(-n1 // width))
    return all((i, j) in done for i in tops for j in lefts)


def open_scores(store: Where | FeatureStore, name: str) -> xr.DataArray | xr.Dataset:
    """Open saved scores, lazily.

    Parameters
    ----------
    store : FeatureStore or its place
        Store that holds the scores.
    name : str
        Name under which they were saved.

    Returns
    -------
    DataArray
        For a whole matrix: dims ``("target", "train")``, ids as coordinates, as for
        ``.sel(target_id="img7")``.
    Dataset
        For the ``top`` of each target: ``score``, ``train`` (ids) and ``position`` with dims
        ``("target", "rank")``, as :func:`top_k` gives it. For those above a ``threshold``: ``score``
        and ``column`` with the dim ``"entry"``, target after target, and ``stop``, where each
        target's entries end; :func:`sparse_scores` makes a SciPy matrix of it.

    Raises
    ------
    NotFoundError
        When no complete matrix has that name.
    DamagedError
        When the document that describes them is damaged or gone, or its arrays do not fit together.

    Examples
    --------
    >>> saved = ts.save_scores(ts.trak_scores(store), store, "whole", overwrite=True)
    >>> scores = ts.open_scores(store, "whole")
    >>> scores.sel(target_id="test-0").sel(train_id="train-3").shape
    ()
    """
    location, path = open_store(store).location, layout.scores_path(name)
    document = read_table(location, path)
    if not document:
        raise _no_scores(location, name)
    where = f"{location}: the saved scores {name!r}"
    with error_context(where):
        arrays = table_arrays(document)
    lazy = {
        one: (array.dimensions, array.open(location, path).to_dask())
        for one, array in arrays.items()
    }
    own = (ARRAYS, PLACE, COORDINATES)
    attrs = {key: value for key, value in document.items() if key not in own}
    coords = {one: lazy.pop(one) for one in ("target_id", "train_id") if one in lazy}
    try:
        if "scores" in lazy:
            dims, matrix = lazy["scores"]
            return xr.DataArray(matrix, dims=dims, coords=coords, name=name, attrs=attrs)
        if "score" in lazy:
            return xr.Dataset(lazy, coords=coords, attrs=attrs)
    except ValueError as error:
        raise DamagedError(f"{where} have arrays that do not fit together ({error})") from error
    raise DamagedError(f"{where} have no scores among their arrays: {sorted(lazy)}")


def sparse_scores(store: Where | FeatureStore, name: str) -> csr_array:
    """Read scores saved with a ``threshold`` as a SciPy matrix (target, train).

    Parameters
    ----------
    store : FeatureStore or its place
        Store that holds the scores.
    name : str
        Name under which they were saved.

    Raises
    ------
    NotFoundError
        When no complete matrix has that name.
    TrakStoreError
        When they were saved otherwise.

    Examples
    --------
    >>> saved = ts.save_scores(ts.grad_cos_scores(store), store, "large", threshold=0.1, overwrite=True)
    >>> matrix = ts.sparse_scores(store, "large")
    >>> matrix.shape, bool(abs(matrix.data).min() >= 0.1)
    ((6, 24), True)
    """
    saved = open_scores(store, name)
    if not isinstance(saved, xr.Dataset) or "stop" not in saved:
        raise TrakStoreError(f"scores {name!r} were not saved with a threshold: use open_scores")
    shape = (saved.sizes["target"], saved.sizes["train"])
    # SciPy does not support float16.
    score = saved["score"].values.astype(np.float32)
    # The ends of rows are SciPy's indptr.
    ends = np.concatenate([[0], saved["stop"].values])
    return csr_array((score, saved["column"].values, ends), shape=shape)


def _no_scores(location: Location, name: str) -> NotFoundError:
    near = did_you_mean(name, names_of_scores(location))
    return NotFoundError(f"{location} has no scores {name!r}{near}")


def names_of_scores(location: Location) -> list[str]:
    """List the names of the complete scores that are saved."""
    names = table_names(location, layout.SCORES)
    return [name for name in names if read_table(location, layout.child(layout.SCORES, name))]


def _write_tile(
    made: SavedArray,
    location: Location,
    path: str,
    t0: int,
    t1: int,
    n0: int,
    n1: int,
    tile: NDArray[Any],
) -> None:
    stored = narrowed(tile, made.dtype, f"scores of targets {t0}..{t1} with train rows {n0}..{n1}")
    made.write_unflushed(location, path, stored, (t0, n0))


def _save_ids(save: Save, ids: Rows, dim: str) -> SavedArray:
    dtype = "str" if ids.dtype.kind in "TUO" else "int64"
    chunk = min(ids.shape[0], CHUNK_BYTES // 8)
    made = SavedArray(f"{dim}_id", dtype, ids.shape, (chunk,), (dim,))
    made.create(save.location, save.path)
    for start, stop in ranges(ids.shape[0], chunk):
        save.write(made, ids.read(start, stop), start)
    return made

"""Score matrices in a store: streamed to Zarr tile by tile, opened lazily."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from trakstore.errors import NotFoundError, NumericsError, TrakStoreError, did_you_mean
from trakstore.linalg.factored import Scores
from trakstore.linalg.kept import create_array, open_array
from trakstore.linalg.rows import Rows
from trakstore.linalg.streaming import for_each_tile
from trakstore.planning import CHUNK_BYTES, ranges
from trakstore.storage import layout
from trakstore.storage.locations import Location, Where
from trakstore.storage.splits import attributes, group_document
from trakstore.storage.store import FeatureStore, open_store

__all__ = ["check_new_name", "open_scores", "save_scores"]


def save_scores(
    scores: Scores,
    store: Where | FeatureStore,
    name: str,
    *,
    memory_limit: int | str | None = None,
) -> xr.DataArray:
    """Write the whole score matrix to ``scores/{name}`` of a store, without ever holding it.

    Parameters
    ----------
    scores : Scores, shape (m, n)
    store : FeatureStore or its place
    name : str
        A new name; what a save that was stopped left under it is written again.
    memory_limit : int or str, optional
        Bytes of one process; a quarter of the available memory when None.

    Returns
    -------
    xarray.DataArray
        As :func:`open_scores` gives it.

    Raises
    ------
    TrakStoreError
        When the name is taken.
    NumericsError
        When a score is not finite.
    MemoryLimitError
        When one target and one tile do not fit.
    """
    check_new_name(store, name)
    location, path = open_store(store).location, layout.scores_path(name)
    rows, columns = scores.shape
    width = min(columns, scores.tile_rows)
    height = max(1, min(rows, CHUNK_BYTES // (4 * width)))
    create_array(location, f"{path}/scores", scores.shape, (height, width), np.float32, scores.dims)
    for dim, ids in (("target", scores.target_ids), ("train", scores.train_ids)):
        _save_ids(location, f"{path}/{dim}_id", ids, dim)
    for_each_tile(scores, _Save(location, f"{path}/scores"), memory_limit, align=height)
    what = {"method": scores.method, "epochs": list(scores.epochs), "average": scores.average}
    location.put({layout.document_key(path): group_document(what)})  # last: now it is complete
    return open_scores(store, name)


def check_new_name(store: Where | FeatureStore, name: str) -> None:
    """Raise a :class:`TrakStoreError` when the store has complete scores of that name."""
    location = open_store(store).location
    if _description(location, layout.scores_path(name)):
        raise TrakStoreError(f"{location} has scores named {name!r}; choose another name")


def open_scores(store: Where | FeatureStore, name: str) -> xr.DataArray:
    """A saved score matrix: lazy, dims ``("target", "train")``, ids as coordinates.

    Raises
    ------
    NotFoundError
        When no complete matrix has that name.
    """
    location, path = open_store(store).location, layout.scores_path(name)
    described = _description(location, path)
    if not described:
        saved = location.names(layout.SCORES)
        names = [one for one in saved if _description(location, f"{layout.SCORES}/{one}")]
        raise NotFoundError(f"{location} has no scores {name!r}{did_you_mean(name, names)}")
    open_lazily: Callable[..., da.Array] = da.from_zarr
    matrix, target, train = (
        open_lazily(open_array(location, f"{path}/{array}", "r"))
        for array in ("scores", "target_id", "train_id")
    )
    return xr.DataArray(
        matrix,
        dims=("target", "train"),
        coords={"target_id": ("target", target), "train_id": ("train", train)},
        name=name,
        attrs=described,
    )


def _description(location: Location, path: str) -> dict[str, Any]:
    """What a saved matrix is; empty until it is complete."""
    document = location.get(layout.document_key(path))
    return {} if document is None else attributes(document, path)


@dataclass(frozen=True)
class _Save:
    location: Location
    path: str

    def __call__(self, t0: int, t1: int, n0: int, n1: int, tile: NDArray[np.float32]) -> None:
        if not np.isfinite(tile).all():
            raise NumericsError(
                f"scores of targets {t0}..{t1} with train rows {n0}..{n1} are not finite; raise "
                f"the damping, or look at the features with `trakstore kernel`"
            )
        open_array(self.location, self.path, "r+")[t0:t1, n0:n1] = tile


def _save_ids(location: Location, path: str, ids: Rows, dim: str) -> None:
    text = ids.dtype.kind in "TUO"
    chunk = min(ids.shape[0], CHUNK_BYTES // 8)
    create_array(location, path, ids.shape, (chunk,), str if text else np.int64, (dim,))
    column = open_array(location, path, "r+")
    for start, stop in ranges(ids.shape[0], chunk):
        column[start:stop] = ids.read(start, stop)

"""Grams that do not fit the memory limit: computed strip by strip into Zarr tiles."""

from __future__ import annotations

import shutil
import tempfile
import traceback
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import LARGER_LIMIT, MemoryLimitError, NumericsError
from trakstore.kernels.gram import PRODUCT_ROWS, GramDtype
from trakstore.kernels.row_weights import KernelSplit, row_weights, unmasked_count, weighting_of
from trakstore.kernels.stored_grams import (
    GRAM_CHUNK,
    StoredGram,
    gram_array,
    origin_of,
    publish,
    start_gram,
    stored_gram,
)
from trakstore.passes.memory import give_back, least_slots, memory_budget
from trakstore.passes.one_pass import Pass, Tiles
from trakstore.passes.rows import Rows
from trakstore.passes.scheduler import task_slots, tile_rows
from trakstore.planning import SLACK, human_bytes, ranges, with_slack
from trakstore.storage import layout
from trakstore.storage.backends.location import Location, open_location
from trakstore.storage.claims import claimed
from trakstore.storage.tables.saved_arrays import SavedArray, TableArray

__all__ = ["Scratch", "TiledGram", "split_tiles", "strip_plan", "tiled_gram"]

STRIP_ROWS = 1024  # train rows of one product


class Scratch:
    """A temporary folder that lasts as long as what was put there is in use."""

    def __init__(self, folder: str | None = None) -> None:
        path = tempfile.mkdtemp(prefix="trakstore-", dir=folder)
        self.location: Location = open_location(path)
        self._finalizer = weakref.finalize(self, shutil.rmtree, path, ignore_errors=True)

    def __reduce__(self) -> Any:
        return (_Elsewhere, (self.location,))


@dataclass(frozen=True)
class _Elsewhere:
    location: Location  # a worker reads the folder but does not own it


@dataclass(frozen=True, eq=False)
class TiledGram:
    """K = ΦᵀΦ as a Zarr array of float64 tiles.

    Attributes
    ----------
    location, path
        Of the group in which the array ``gram`` lies.
    dim, rows, trace, dtype
        As for a ``Gram``.
    stored : SavedArray, optional
        The array with the checksums of its chunks: tiles that another process wrote there since are
        refused.
    """

    location: Location
    path: str
    dim: int
    rows: int
    trace: float
    dtype: GramDtype = "float32"
    scratch: Any = field(default=None, repr=False)  # kept alive for its folder
    stored: SavedArray | None = field(default=None, repr=False)

    @property
    def array(self) -> TableArray:
        """(k, k), both triangles."""
        array = self.stored or gram_array(self.dim)
        return array.open(self.location, self.path)


def tiled_gram(
    rows: Rows,
    weights: Rows | None,
    location: Location,
    path: str,
    *,
    dtype: GramDtype = "float32",
    memory_limit: int | str | None = None,
) -> TiledGram:
    """K strip by strip: as many passes over the rows as there are strips that fit at once.

    Parameters
    ----------
    rows : Rows, shape (n, k)
    weights : Rows, shape (n,), optional
    location, path
        Of the group in which the array ``gram`` is made; what is there is replaced.
    dtype : {"float32", "float64"}
        Of the products.
    memory_limit : int or str, optional

    Raises
    ------
    MemoryLimitError
        When not even one strip fits.
    NumericsError
        When a feature is not finite.
    """
    count, dim = rows.shape
    array = gram_array(dim)
    plan = strip_plan(rows, dtype, memory_limit)
    give_back()
    array.create(location, path)
    strips = _StripPass(plan.height, rows, weights, plan.step, dtype, array, location, path)
    trace = strips.run(dim, workers=plan.slots)
    used = count if weights is None else _used(weights)
    return TiledGram(location, path, dim, used, trace, dtype)


@dataclass(frozen=True)
class StripPlan:
    """Train rows of one product, rows of a strip, strips at once, and the bytes they need."""

    step: int
    height: int
    slots: int
    memory: int


def strip_plan(rows: Rows, dtype: GramDtype, memory_limit: int | str | None) -> StripPlan:
    """Strips of whole tiles that fit the memory limit.

    Raises
    ------
    MemoryLimitError
        When not even one strip fits.
    """
    count, dim = rows.shape
    step = min(count, tile_rows(rows) * max(1, STRIP_ROWS // tile_rows(rows)))
    tile, limit = min(GRAM_CHUNK, dim), memory_budget(memory_limit)
    fixed = step * dim * (rows.dtype.itemsize + np.dtype(dtype).itemsize) + 4 * tile * tile * 8
    usable, slots, least = limit - limit // SLACK, task_slots(), least_slots()
    while slots > least and slots * (fixed + 9 * tile * dim) > usable:
        slots -= 1
    strip = (usable // slots - fixed) // (9 * dim) // tile
    if strip < 1:
        need = with_slack(slots * (fixed + 9 * tile * dim))
        raise MemoryLimitError(
            f"a gram of {dim} in tiles needs at least {human_bytes(need)}, the memory limit is "
            f"{human_bytes(limit)}: {LARGER_LIMIT}"
        )
    fair = -(-dim // tile // slots) if dim > tile else 1  # every slot has a strip
    height = int(min(strip, max(1, fair)) * tile)
    return StripPlan(step, height, slots, slots * (fixed + 9 * dim * height))


@dataclass(frozen=True, eq=False)
class _StripPass(Pass[float, float]):
    """Strips of columns; their share of the trace.

    Attributes
    ----------
    train_step : int
        Rows of one product.
    """

    rows: Rows
    weights: Rows | None
    train_step: int
    dtype: GramDtype
    array: SavedArray
    location: Location
    path: str

    def start(self, tiles: Tiles) -> float:  # noqa: ARG002
        give_back()  # on a worker
        return 0.0

    def visit(self, state: float, low: int, high: int) -> float:
        return state + self._strip(low, high)

    def _strip(self, start: int, stop: int) -> float:
        """The strip of columns start..stop, from the diagonal on."""
        count, dim = self.rows.shape
        total = np.zeros((stop - start, dim - start))
        for low, high in ranges(count, self.train_step):
            part = self._tile(low, high)
            for a, b in ranges(len(part), PRODUCT_ROWS):
                _add(total, part[a:b, start:], stop - start)
        diagonal = np.einsum("ii->i", total[:, : stop - start])
        if not np.isfinite(diagonal).all():
            raise NumericsError("features hold NaN or inf, or are too large: featurize them again")
        self._write(total, start, stop)
        return float(diagonal.sum())

    def _tile(self, low: int, high: int) -> NDArray[Any]:
        part = np.asarray(self.rows.read(low, high), dtype=self.dtype)
        if self.weights is None:
            return part
        weights = self.weights.read(low, high)
        keep = weights > 0
        scaled: NDArray[Any] = part[keep] * np.sqrt(weights[keep], dtype=self.dtype)[:, None]
        return scaled

    def _write(self, total: NDArray[np.float64], start: int, stop: int) -> None:
        array = self.array.open_to_write(self.location, self.path)
        square = total[:, : stop - start]
        square[...] = np.triu(square) + np.triu(square, 1).T
        tile = array.chunks[0]
        for top, bottom in ranges(stop - start, tile):  # one chunk at a time: each is copied twice
            for low, high in ranges(total.shape[1], tile):
                part, rows = total[top:bottom, low:high], slice(start + top, start + bottom)
                array[rows, start + low : start + high] = part
                if low >= stop - start:
                    array[start + low : start + high, rows] = part.T


def _add(total: NDArray[np.float64], part: NDArray[Any], height: int) -> None:
    left = part[:, :height].T
    with np.errstate(over="ignore", invalid="ignore"):
        for low, high in ranges(part.shape[1], GRAM_CHUNK):
            total[:, low:high] += left @ part[:, low:high]


def _used(weights: Rows) -> int:
    pieces = ranges(weights.shape[0], weights.chunk_rows)
    return sum(int(np.count_nonzero(weights.read(low, high))) for low, high in pieces)


def split_tiles(
    split: KernelSplit,
    *,
    dtype: GramDtype = "float32",
    memory_limit: int | str | None = None,
    scratch: str | None = None,
) -> TiledGram:
    """The gram of a split in tiles: the stored one where it is valid, else computed and stored.

    Where the store cannot be written, or another process writes the same gram, the tiles live in a
    temporary folder while they are in use.
    """
    path = layout.gram_path(split.epoch, split.name, weighting_of(split))
    wanted, features = origin_of(split, dtype), split.column(layout.FEATURES)
    found = stored_gram(split, wanted)
    if found is not None and found.origin == wanted:
        return _kept(split, path, found)
    strip_plan(features, dtype, memory_limit)  # refuses before what is stored goes
    options: Any = {"dtype": dtype, "memory_limit": memory_limit}
    with _in_store(split, path) as begun:
        own = Scratch(scratch) if begun is None else None
        place = split.location if own is None else own.location
        made = tiled_gram(features, row_weights(split), place, path, **options)
        made = replace(made, rows=unmasked_count(split), scratch=own)
        if begun is not None:
            publish(split, begun, wanted, made.rows, made.trace)
        return replace(made, stored=gram_array(made.dim).sealed(place, path))


def _kept(split: KernelSplit, path: str, found: StoredGram) -> TiledGram:
    values = (found.used, found.trace, found.dtype)
    array = found.arrays["gram"]
    return TiledGram(split.location, path, array.shape[0], *values, stored=array)


@contextmanager
def _in_store(split: KernelSplit, path: str) -> Iterator[bytes | None]:
    """The document of a gram that is begun in the store, for this process alone.

    None where the store cannot be written, or another process makes the same gram just now.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(claimed(split.location, path, "kernel"))
            begun = start_gram(split)
        except (OSError, ValueError) as error:
            _let_go(error)
            begun = None
        yield begun


def _let_go(error: BaseException | None) -> None:
    """Empty the frames that an error passed through.

    zarr's futures and their errors hold each other, so that both stay until the garbage collector comes
    by; with them all frames that led there, and what is in those: a temporary folder, for one.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__

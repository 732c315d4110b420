"""Grams that do not fit the memory limit: computed strip by strip into Zarr tiles."""

from __future__ import annotations

import shutil
import tempfile
import traceback
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import LARGER_LIMIT, MemoryLimitError, NumericsError
from trakstore.kernels.gram import PRODUCT_ROWS, GramDtype, products_vanish
from trakstore.kernels.row_weights import KernelSplit, row_weights, unmasked_count, weighting_of
from trakstore.kernels.stored_grams import (
    no_gram_error,
    origin_of,
    publish,
    rows_are_gone,
    start_gram,
    stored_gram,
)
from trakstore.passes.memory import give_back, least_slots, memory_budget
from trakstore.passes.one_pass import Pass
from trakstore.passes.rows import Rows
from trakstore.passes.scheduler import task_slots, tile_rows
from trakstore.planning import SLACK, human_bytes, ranges, with_slack
from trakstore.storage import layout
from trakstore.storage.backends.location import Location, open_location
from trakstore.storage.claims import claimed
from trakstore.storage.tables.gram_documents import GRAM_CHUNK, gram_array
from trakstore.storage.tables.saved_arrays import SavedArray
from trakstore.storage.tables.table_array import TableArray

# Train rows of one product.
STRIP_ROWS = 1024


class Scratch:
    """A temporary folder that exists as long as something in it is in use."""

    def __init__(self, folder: str | None = None) -> None:
        path = tempfile.mkdtemp(prefix="trakstore-", dir=folder)
        self.location: Location = open_location(path)
        self._finalizer = weakref.finalize(self, shutil.rmtree, path, ignore_errors=True)

    # A worker that is sent this object reads the folder, but does not own it: it is removed only here.
    def __reduce__(self) -> Any:
        return (_Elsewhere, (self.location,))


@dataclass(frozen=True)
class _Elsewhere:
    location: Location


@dataclass(frozen=True, eq=False)
class TiledGram:
    """K = ΦᵀΦ as a Zarr array of float64 tiles.

    Attributes
    ----------
    location, path
        The group in which the array ``gram`` lies.
    dim, rows, trace, dtype
        As for a ``Gram``.
    scratch
        Temporary folder, if there is one; it exists as long as this object refers to it.
    stored : SavedArray, optional
        Array with the checksums of its chunks: tiles that another process wrote there since are
        refused.
    """

    location: Location
    path: str
    dim: int
    rows: int
    trace: float
    dtype: GramDtype = "float32"
    scratch: Any = field(default=None, repr=False)
    stored: SavedArray | None = field(default=None, repr=False)

    @property
    def array(self) -> TableArray:
        """K, shape (k, k), both triangles."""
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
    """Compute K strip by strip, with a pass over the rows for each strip.

    The number of rows includes those without weight.

    Parameters
    ----------
    rows : Rows, shape (n, k)
    weights : Rows, shape (n,), optional
    location, path
        Group in which the array ``gram`` is made; an existing one is replaced.
    dtype : {"float32", "float64"}
        Dtype of the products.
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
    if products_vanish(trace, rows.shape, dtype):
        wide = tiled_gram(rows, weights, location, path, dtype="float64", memory_limit=memory_limit)
        return replace(wide, dtype=dtype)
    return TiledGram(location, path, dim, count, trace, dtype)


@dataclass(frozen=True)
class StripPlan:
    """Train rows of one product, columns of a strip, strips at once, and the bytes they need."""

    step: int
    height: int
    slots: int
    memory: int


def strip_plan(rows: Rows, dtype: GramDtype, memory_limit: int | str | None) -> StripPlan:
    """Plan the strips of a gram of these rows; see :func:`plan_strips`."""
    (count, dim), itemsize = rows.shape, rows.dtype.itemsize
    return plan_strips(count, dim, itemsize, tile_rows(rows), dtype, memory_budget(memory_limit))


def plan_strips(
    count: int, dim: int, itemsize: int, tile_height: int, dtype: GramDtype, limit: int
) -> StripPlan:
    """Plan strips of whole tiles that fit the memory limit.

    Parameters
    ----------
    count, dim, itemsize : int
        Rows and columns of the features, and bytes of a stored value.
    tile_height : int
        Rows of a tile that is read.
    dtype : {"float32", "float64"}
        Dtype of the products.
    limit : int
        Bytes of the process.

    Raises
    ------
    MemoryLimitError
        When not even one strip fits.
    """
    step = min(count, tile_height * max(1, STRIP_ROWS // tile_height))
    tile = min(GRAM_CHUNK, dim)
    # Beside its strip a task has the rows as stored and as computed, and four tiles in work. Each value
    # of the strip counts as 9 bytes: its float64, and some room for numpy's temporaries.
    fixed = step * dim * (itemsize + np.dtype(dtype).itemsize) + 4 * tile * tile * 8
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
    # A strip is at most as wide as a fair share, so that every task has one.
    fair = -(-dim // tile // slots) if dim > tile else 1
    height = int(min(strip, max(1, fair)) * tile)
    return StripPlan(step, height, slots, slots * (fixed + 9 * dim * height))


@dataclass(frozen=True, eq=False)
class _StripPass(Pass[float, float]):
    """Strips of columns, written to tiles; the result is their share of the trace.

    Attributes
    ----------
    train_step : int
        Train rows of one product.
    """

    rows: Rows
    weights: Rows | None
    train_step: int
    dtype: GramDtype
    array: SavedArray
    location: Location
    path: str

    def start(self) -> float:
        # Checked again, since on a cluster this is another process.
        give_back()
        return 0.0

    def visit(self, state: float, low: int, high: int) -> float:
        return state + self._strip(low, high)

    def _strip(self, start: int, stop: int) -> float:
        """Compute and write the strip of columns start..stop, from the diagonal on."""
        count, dim = self.rows.shape
        # Columns before the diagonal belong to earlier strips.
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
        """Return rows times the square roots of their weights, without rows of weight 0."""
        part = np.asarray(self.rows.read(low, high), dtype=self.dtype)
        if self.weights is None:
            return part
        weights = self.weights.read(low, high)
        # A row without weight is left out: it may hold NaN, and NaN times 0 is NaN.
        keep = weights > 0
        scaled: NDArray[Any] = part[keep] * np.sqrt(weights[keep], dtype=self.dtype)[:, None]
        return scaled

    def _write(self, total: NDArray[np.float64], start: int, stop: int) -> None:
        # Products of float32 tiles need not be symmetric to the bit: the upper triangle is used for
        # both.
        square = total[:, : stop - start]
        square[...] = np.triu(square) + np.triu(square, 1).T
        tile = self.array.chunks[0]
        write = partial(self.array.write, self.location, self.path)
        # One chunk at a time, since each is copied on its way.
        for top, bottom in ranges(stop - start, tile):
            for low, high in ranges(total.shape[1], tile):
                part = total[top:bottom, low:high]
                write(part, (start + top, start + low))
                if low >= stop - start:
                    write(part.T, (start + low, start + top))


def _add(total: NDArray[np.float64], part: NDArray[Any], height: int) -> None:
    """Add the products of the first ``height`` columns with all, a tile of columns at a time."""
    left = part[:, :height].T
    with np.errstate(over="ignore", invalid="ignore"):
        for low, high in ranges(part.shape[1], GRAM_CHUNK):
            total[:, low:high] += left @ part[:, low:high]


def split_tiles(
    split: KernelSplit, *, dtype: GramDtype = "float32", memory_limit: int | str | None = None
) -> TiledGram:
    """Return the gram of a split in tiles: the stored one if it is valid, else a new one, stored.

    If the store cannot be written, or another process is writing the same gram, the tiles are kept in a
    temporary folder while they are in use.
    """
    path = layout.gram_path(split.epoch, split.name, weighting_of(split))
    wanted, features = origin_of(split, dtype), split.column(layout.FEATURES)
    known = stored_gram(split, wanted)
    if known is not None and known.origin == wanted:
        array, count = known.arrays["gram"], known.used
        how: Any = {"dtype": known.dtype, "stored": array}
        return TiledGram(split.location, path, array.shape[0], count, known.trace, **how)
    if split.dropped:
        raise no_gram_error(split, None if known is None else known.origin, wanted)
    # Refuse before the stored gram is removed.
    strip_plan(features, dtype, memory_limit)
    how = {"dtype": dtype, "memory_limit": memory_limit}
    with _in_store(split, path) as begun:
        own = Scratch() if begun is None else None
        place = split.location if own is None else own.location
        made = tiled_gram(features, row_weights(split), place, path, **how)
        made = replace(made, rows=unmasked_count(split), scratch=own)
        if begun is not None:
            publish(split, begun, wanted, made.rows, made.trace)
        # Checksums of the chunks as they are now: a tile that is overwritten later is refused.
        return replace(made, stored=gram_array(made.dim).sealed(place, path))


@contextmanager
def _in_store(split: KernelSplit, path: str) -> Iterator[bytes | None]:
    """Begin a gram in the store, for this process alone, and yield its document.

    Yield None if the store cannot be written, another process is making the same gram, or the rows were
    dropped since the split was opened.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(claimed(split.location, path, "kernel"))
            begun = None if rows_are_gone(split) else start_gram(split)
        except (OSError, ValueError) as error:
            _clear_frames(error)
            begun = None
        yield begun


def _clear_frames(error: BaseException | None) -> None:
    """Clear the frames that an error passed through.

    zarr's futures and their errors refer to each other, so that both stay until the garbage collector
    runs. They hold all frames on the way, and whatever is in those, such as a temporary folder.
    by; with them all frames that led there, and what is in those: a temporary folder, for one.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__

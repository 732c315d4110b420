"""Windows, tiles and columns as lazy Dask arrays, for code that works on such arrays."""

from __future__ import annotations

from typing import Any, Protocol

import dask.array as da
import numpy as np
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph
from numpy.typing import NDArray

from trakstore.passes.rows import Rows
from trakstore.passes.scheduler import one_blas_thread, sent_once
from trakstore.planning import ranges
from trakstore.scores.parts import Window


class _Windows(Protocol):
    @property
    def shape(self) -> tuple[int, int]: ...
    def window(self, start: int, stop: int, /) -> Window: ...


def lazy_matrix(source: _Windows, rows: int, columns: int) -> da.Array:
    """Return a float32 array of blocks (rows, columns).

    The graph is made by hand, so that a window of rows, which costs a solve, is one task shared by all
    of its blocks.
    """
    if 0 in source.shape:
        return _empty(source.shape, np.dtype(np.float32))
    tops, lefts = list(ranges(source.shape[0], rows)), list(ranges(source.shape[1], columns))
    # Equal scores have equal names, so that Dask recognises a block that it has already.
    token = tokenize(source, rows, columns)
    name, window, sent = f"scores-{token}", f"window-{token}", sent_once(source)
    graph: dict[Any, Any] = {}
    for i, top in enumerate(tops):
        graph[(window, i)] = (_window, sent.key, *top)
        for j, left in enumerate(lefts):
            graph[(name, i, j)] = (_tile, (window, i), *left)
    layers = HighLevelGraph.from_collections(name, graph, dependencies=[sent])
    return da.Array(layers, name, (_lengths(tops), _lengths(lefts)), dtype=np.float32)


def lazy_column(column: Rows, size: int) -> da.Array:
    """Return a one-dimensional array of blocks of ``size`` rows."""
    if not column.shape[0]:
        return _empty(column.shape, column.dtype)
    pieces = list(ranges(column.shape[0], size))
    name = f"column-{tokenize(column.token, size)}"
    # The column is one entry of the graph, and all blocks refer to it.
    graph: dict[Any, Any] = {f"origin-{name}": column}
    for at, piece in enumerate(pieces):
        graph[(name, at)] = (_read, f"origin-{name}", *piece)
    layers = HighLevelGraph.from_collections(name, graph, dependencies=[])
    return da.Array(layers, name, (_lengths(pieces),), dtype=column.dtype)


def _empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> da.Array:
    """Return an array without values, since Dask takes no dimension cut into zero blocks."""
    empty: da.Array = da.from_array(np.empty(shape, dtype), chunks=-1)
    return empty


def _lengths(pieces: list[tuple[int, int]]) -> tuple[int, ...]:
    return tuple(stop - start for start, stop in pieces)


def _window(source: _Windows, start: int, stop: int) -> Window:
    with one_blas_thread():
        return source.window(start, stop)


def _tile(window: Window, start: int, stop: int) -> NDArray[np.float32]:
    with one_blas_thread(), window.reading([(start, stop)]):
        return window.tile(start, stop)


def _read(column: Rows, start: int, stop: int) -> NDArray[Any]:
    return column.read(start, stop)

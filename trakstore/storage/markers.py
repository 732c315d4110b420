"""Markers of blocks as readers use them: how each chunk of a committed block ends.

The checksum that ends a chunk is in the bytes that are read anyway; that it is the one in its block's
marker says that the chunk is this one, of this block and this split, and not merely a sound one.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import DamagedError
from trakstore.spec import SplitSpec
from trakstore.storage import layout
from trakstore.storage.arrays import marker_entries
from trakstore.storage.backends.ahead import Wanted, read_key
from trakstore.storage.backends.chunks import TAIL, intact
from trakstore.storage.backends.location import Location

__all__ = ["Marker", "MisplacedError", "marker_of", "tail_of_chunk", "wanted_marker"]

_MOST = 2**15  # markers that are kept in a process


class MisplacedError(DamagedError):
    """A chunk that is sound but is not the one that its block's marker commits."""


@dataclass(frozen=True)
class Marker:
    """What a block's marker says.

    Attributes
    ----------
    rows : int
        Of the block.
    tails : bytes
        The ends of its chunks, in the order of :func:`~trakstore.storage.arrays.block_keys`.
    """

    rows: int
    tails: bytes


_known: dict[tuple[Location, str, int, int], Marker] = {}
_lock = threading.Lock()


def marker_of(
    location: Location, split: str, spec: SplitSpec, block: int, *, fresh: bool = False
) -> Marker:
    """The marker of a block; read once in a process unless a ``fresh`` one is asked for.

    Parameters
    ----------
    location : Location
    split : str
        Path of the split.
    spec : SplitSpec
    block : int
    fresh : bool

    Raises
    ------
    DamagedError
        When there is none, or it is damaged, or is that of another split.
    """
    at = (location, split, spec.nonce, block)
    if not fresh and (known := _known.get(at)) is not None:
        return known
    wanted = _wanted(location, split, spec, block)
    read = location.get_chunk if fresh else partial(read_key, location)
    found = _parsed(location, wanted.key, read(wanted.key, wanted.most), spec)
    with _lock:
        if len(_known) >= _MOST:
            _known.clear()
        _known[at] = found
    return found


def wanted_marker(location: Location, split: str, spec: SplitSpec, block: int) -> Wanted | None:
    """What :func:`marker_of` will read; None for a marker that is known."""
    known = (location, split, spec.nonce, block) in _known
    return None if known else _wanted(location, split, spec, block)


def _wanted(location: Location, split: str, spec: SplitSpec, block: int) -> Wanted:
    size = TAIL * (marker_entries(spec) + 1)
    return Wanted(location, layout.marker_key(split, block), size, size)


def _parsed(
    location: Location, key: str, content: bytes | NDArray[np.uint8] | None, spec: SplitSpec
) -> Marker:
    if content is None:
        raise DamagedError(
            f"{location}: {key} is missing: the block is not committed, or was dropped or repaired "
            f"since the split was opened"
        )
    value = bytes(content)
    if len(value) < 3 * TAIL or not intact(value):
        raise DamagedError(f"{location}: {key} is damaged: its checksum is wrong")
    rows, nonce = np.frombuffer(value[: 2 * TAIL], "<u4").tolist()
    if nonce != spec.nonce:
        raise DamagedError(
            f"{location}: {key} is of another split: it has nonce {nonce}, the split {spec.nonce}"
        )
    return Marker(rows, value[2 * TAIL : -TAIL])


def tail_of_chunk(spec: SplitSpec, marker: Marker, name: str, numbers: tuple[int, ...]) -> bytes:
    """How a chunk of a column ends, as its block's marker says.

    Parameters
    ----------
    spec : SplitSpec
    marker : Marker
    name : str
        Of the column.
    numbers : tuple of int
        Numbers of the chunk along each dimension.
    """
    row_columns, across = spec.row_columns, -(-spec.dim // spec.chunk_columns)
    if name in row_columns:
        at = row_columns.index(name)
    else:
        within = numbers[0] % (spec.block_rows // spec.chunk_rows)
        down = -(-marker.rows // spec.chunk_rows)
        at = len(row_columns)
        if name == layout.FEATURES:
            at += within * across + numbers[1]
        else:
            layers = sorted(dict(spec.widths))
            at += down * across + layers.index(name) * down + within
    return marker.tails[TAIL * at : TAIL * (at + 1)]

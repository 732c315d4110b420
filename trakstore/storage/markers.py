"""Markers of blocks as readers use them: they hold the tail of each chunk of a committed block.

The checksum that ends a chunk shows that the chunk is sound. Equality with the one in the block's
marker shows that it is this chunk, of this block and this split; a chunk copied from elsewhere, or an
older one put back, would be sound too. The comparison costs nothing, since the tail is read anyway.
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

_MOST = 2**15  # markers that are kept in a process


class MisplacedError(DamagedError):
    """A chunk that is sound but is not the one that its block's marker commits."""


@dataclass(frozen=True)
class Marker:
    """Contents of a block's marker.

    Attributes
    ----------
    rows : int
        Number of rows of the block.
    tails : bytes
        Ends of its chunks, in the order of :func:`~trakstore.storage.arrays.block_keys`.
    """

    rows: int
    tails: bytes


_known: dict[tuple[Location, str, int, int], Marker] = {}
_lock = threading.Lock()


def marker_of(
    location: Location, split: str, spec: SplitSpec, block: int, *, fresh: bool = False
) -> Marker:
    """Return the marker of a block; read once in a process unless a ``fresh`` one is asked for.

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
        When there is no marker, or it is damaged or another split's.
    """
    at = (location, split, spec.nonce, block)
    if not fresh and (known := _known.get(at)) is not None:
        return known
    wanted = _wanted(location, split, spec, block)
    read = location.get_chunk if fresh else partial(read_key, location)
    marker = _parsed(location, wanted.key, read(wanted.key, wanted.most), spec)
    # A cached marker is outdated when rows are appended to its block. So a chunk that disagrees with it
    # is read again together with a fresh marker.
    with _lock:
        if len(_known) >= _MOST:
            _known.clear()
        _known[at] = marker
    return marker


def wanted_marker(location: Location, split: str, spec: SplitSpec, block: int) -> Wanted | None:
    """Return the value that :func:`marker_of` will read; None for a cached marker."""
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
    if nonce in spec.nonces_before:
        raise DamagedError(
            f"{location}: {key} is of rows that were withdrawn, since a block of the split was wrong; "
            f"run the same featurize again to write them"
        )
    if nonce != spec.nonce:
        raise DamagedError(
            f"{location}: {key} is of another split: it has nonce {nonce}, the split {spec.nonce}"
        )
    return Marker(rows, value[2 * TAIL : -TAIL])


def tail_of_chunk(spec: SplitSpec, marker: Marker, name: str, numbers: tuple[int, ...]) -> bytes:
    """Return the tail that a block's marker has for a chunk of a column.

    Parameters
    ----------
    spec : SplitSpec
    marker : Marker
    name : str
        Name of the column.
    numbers : tuple of int
        Numbers of the chunk along each dimension.
    """
    # The order of a marker's entries: see block_keys, which writers follow.
    row_columns, across = spec.row_columns, -(-spec.dim // spec.chunk_columns)
    if name in row_columns:
        at = row_columns.index(name)
    else:
        within = numbers[0] % (spec.block_rows // spec.chunk_rows)
        # A last block has as many chunks as its marker has rows for: a stopped append may have stored
        # more rows than the split counts.
        down = -(-marker.rows // spec.chunk_rows)
        at = len(row_columns)
        if name == layout.FEATURES:
            at += within * across + numbers[1]
        else:
            layers = sorted(dict(spec.widths))
            at += down * across + layers.index(name) * down + within
    return marker.tails[TAIL * at : TAIL * (at + 1)]

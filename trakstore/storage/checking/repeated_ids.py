"""Ids that several rows of a split have, which no writer produces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trakstore.planning import counted
from trakstore.quantities import shown
from trakstore.storage import layout
from trakstore.storage.columns import first_few
from trakstore.storage.split import Split

_AT_ONCE = 2**23  # ids that are held at a time, as 64-bit numbers
_Keys: TypeAlias = NDArray[np.int64]


def repeated_ids(split: Split, blocks: Sequence[int]) -> str | None:
    """Describe the ids that several rows in some blocks have; None if all ids differ.

    For many samples there are several passes, each over a share of the ids.

    Parameters
    ----------
    split : Split
    blocks : sequence of int
        Numbers of committed blocks, in order.
    """
    passes = -(-len(blocks) * split.spec.block_rows // _AT_ONCE)
    for share in range(passes):
        keys = np.sort(np.concatenate([own for _, _, own in _read(split, blocks, passes, share)]))
        suspects = np.unique(keys[1:][keys[1:] == keys[:-1]])
        # Two texts may have the same key: only equal ids count.
        rows = _rows_by_id(split, blocks, suspects) if len(suspects) else {}
        repeated = {name: at for name, at in rows.items() if len(at) > 1}
        if repeated:
            name, at = next(iter(repeated.items()))
            rows_of_it = first_few(np.array(at))
            return f"{counted(len(repeated), 'id')}, first {shown(name)} in rows {rows_of_it}"
    return None


def _rows_by_id(split: Split, blocks: Sequence[int], keys: _Keys) -> dict[int | str, list[int]]:
    """Return the positions of the rows whose ids have some keys, by id, in the order of rows."""
    rows = dict[int | str, list[int]]()
    for start, ids, own in _read(split, blocks, 1, 0):
        for at in np.flatnonzero(np.isin(own, keys)):
            rows.setdefault(ids[at : at + 1].tolist()[0], []).append(start + int(at))
    return rows


def _read(
    split: Split, blocks: Sequence[int], passes: int, share: int
) -> Iterator[tuple[int, NDArray[Any], _Keys]]:
    """Yield the first row of each block, its ids, and the keys of those of them that are in a share."""
    column = split.column(layout.SAMPLE_ID)
    for block in blocks:
        start, stop = split.spec.block_range(block)
        ids = column.read(start, stop)
        keys = ids if ids.dtype.kind == "i" else np.array([hash(one) for one in ids.tolist()])
        yield start, ids, keys[keys % passes == share]

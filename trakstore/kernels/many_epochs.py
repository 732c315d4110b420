"""Kernels of many epochs at once, where each read is a way to another machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from trakstore.kernels.choice import choose_solver, need_solver
from trakstore.kernels.gram import GramDtype, check_gram_dtype, gram, gram_bytes
from trakstore.kernels.row_weights import KernelSplit, masked_rows, row_weights, unmasked_count
from trakstore.kernels.solvers import Damping, Solver
from trakstore.kernels.stored_grams import (
    GramOrigin,
    ReadGram,
    grams_ready,
    origin_of,
    read_gram,
    write_gram,
)
from trakstore.passes.dask_cluster import active_client
from trakstore.passes.memory import memory_budget
from trakstore.passes.rows import ArrayRows, Rows, together
from trakstore.passes.scheduler import tile_rows
from trakstore.planning import with_slack
from trakstore.storage import layout
from trakstore.storage.backends.ahead import AHEAD_BYTES
from trakstore.storage.backends.together import together as all_at_once

__all__ = ["kernels_together"]

SHARE = 8  # one part in so many of the memory limit is for grams, and one for rows of small splits


def kernels_together(
    splits: Sequence[KernelSplit],
    damping: Damping,
    *,
    solver: Solver | None = None,
    dtype: GramDtype = "float32",
    memory_limit: int | str | None = None,
) -> AbstractContextManager[None]:
    """Within, this thread has the grams of these splits, which were read, or made and stored, at once.

    They are those that :func:`~trakstore.kernels.choice.factor_split` asks for, to the bit. Nothing is
    done ahead on a local disk, or where all grams take more than an eighth of the memory limit.
    """
    need_solver(solver)
    check_gram_dtype(dtype)
    limit = memory_budget(memory_limit)
    asked = [
        _Asked(split, origin_of(split, dtype))
        for split in splits
        if _needs_gram(split, damping, solver, limit)
    ]
    size = sum(8 * one.features.shape[1] ** 2 for one in asked)
    if len(asked) < 2 or size > limit // SHARE:
        return nullcontext()
    place = asked[0].split.location
    found = all_at_once(place, [partial(read_gram, one.split, one.origin) for one in asked])
    known = list(zip(asked, found, strict=True))
    if active_client() is None:  # else rows are read where the work is done
        fresh = [one for one, read in known if read is None]
        made = list(_made(fresh, limit - size, limit // SHARE))
        all_at_once(
            place, [partial(write_gram, one.split, read.gram, one.origin) for one, read in made]
        )
        known += made
    return grams_ready([(one.split, one.origin, read) for one, read in known if read is not None])


@dataclass(frozen=True, eq=False)
class _Asked:
    """A gram that will be asked for."""

    split: KernelSplit
    origin: GramOrigin

    @property
    def features(self) -> Rows:
        return self.split.column(layout.FEATURES)

    @property
    def row_bytes(self) -> int:
        """Of all rows in memory, and their weights."""
        (rows, dim), step = self.features.shape, self.features.chunk_rows
        return -(-rows // step) * step * (dim * self.features.dtype.itemsize + 8)

    def fits(self, limit: int) -> bool:
        """Whether the gram can be made within a memory limit."""
        rows, computed = self.features, np.dtype(self.origin.dtype).itemsize
        parts = gram_bytes(rows.shape[1], tile_rows(rows), rows.dtype.itemsize, computed)
        return with_slack(sum(parts)) <= limit


def _needs_gram(split: KernelSplit, damping: Damping, solver: Solver | None, limit: int) -> bool:
    """Whether a split, not on a local disk, gets a solver that takes a gram."""
    if split.location.near:
        return False
    dim = split.column(layout.FEATURES).shape[1]
    chosen = solver or choose_solver(unmasked_count(split), dim, damping, limit)
    return chosen.form == "matrix"


def _made(asked: Sequence[_Asked], limit: int, room: int) -> Iterator[tuple[_Asked, ReadGram]]:
    """Grams of splits of which some at a time fit ``room`` bytes; those of larger ones are left out.

    Rows are in memory twice for a moment: as they were read, and as arrays.
    """
    ahead, left = min(AHEAD_BYTES, room // 2), limit - room
    small = [one for one in asked if one.row_bytes <= ahead and one.fits(left)]
    for some in _batches(small, ahead):
        columns = [(one.features, row_weights(one.split)) for one in some]
        with together(((rows, 0, one[0].shape[0]) for one in columns for rows in one), ahead):
            held = [(_held(rows), weights and _held(weights)) for rows, weights in columns]
        for one, (rows, weights) in zip(some, held, strict=True):
            made = gram(rows, weights, dtype=one.origin.dtype, memory_limit=left)
            made = replace(made, rows=unmasked_count(one.split))
            yield one, ReadGram(made, one.origin, masked_rows(one.split))


def _batches(asked: Sequence[_Asked], room: int) -> Iterator[list[_Asked]]:
    some: list[_Asked] = []
    for one in asked:
        if some and sum(other.row_bytes for other in [*some, one]) > room:
            yield some
            some = []
        some.append(one)
    if some:
        yield some


def _held(rows: Rows) -> ArrayRows:
    """All rows in memory, in the tiles that they have on disk."""
    return ArrayRows(rows.read(0, rows.shape[0]), rows.chunk_rows)

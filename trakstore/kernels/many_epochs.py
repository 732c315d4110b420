"""Factored kernels of many epochs; grams are read or made together where reading is slow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from trakstore.kernels.choice import factor_split, need_solver, solver_of
from trakstore.kernels.gram import GramDtype, check_gram_dtype, gram, gram_bytes
from trakstore.kernels.row_weights import KernelSplit, masked_rows, row_weights, unmasked_count
from trakstore.kernels.solvers import Damping, Factor, Solver
from trakstore.kernels.stored_grams import GramInMemory, origin_of, read_gram, write_gram
from trakstore.passes.dask_cluster import active_client
from trakstore.passes.memory import memory_budget
from trakstore.passes.rows import ArrayRows, Rows, together
from trakstore.passes.scheduler import tile_rows
from trakstore.planning import with_slack
from trakstore.storage import layout
from trakstore.storage.backends.ahead import AHEAD_BYTES
from trakstore.storage.backends.together import together as all_at_once
from trakstore.storage.tables.gram_documents import GramOrigin

# Grams, and the rows of small splits, may each take one part in so many of the memory limit.
SHARE = 8


def factors_of(
    splits: Sequence[KernelSplit],
    damping: float | Damping = 1.0,
    *,
    solver: Solver | None = None,
    dtype: GramDtype = "float32",
    memory_limit: int | str | None = None,
    kept: bool = True,
    device: str = "cpu",
) -> Iterator[Factor]:
    """Factor K + λI of each split, one after the other.

    Parameters
    ----------
    splits : sequence of Split
        Complete splits.
    damping, solver, dtype, memory_limit, device
        As for :func:`~trakstore.kernels.choice.factor_split`.
    kept : bool
        Whether the caller keeps all factors, so that they share the memory limit.
    """
    damped, limit, held = Damping.of(damping), memory_budget(memory_limit), 0
    grams = grams_at_once(splits, damped, solver, dtype, limit, device)
    for at, split in enumerate(splits):
        # Each gram is dropped once it is factored, so that grams and factors of all epochs are never in
        # memory together.
        factor = factor_split(
            split,
            damped,
            solver=solver,
            dtype=dtype,
            memory_limit=limit,
            held=held,
            ready=grams.pop(at, None),
            device=device,
        )
        held += factor.memory if kept else 0
        yield factor


def grams_at_once(
    splits: Sequence[KernelSplit],
    damping: Damping,
    solver: Solver | None,
    dtype: GramDtype,
    limit: int,
    device: str = "cpu",
) -> dict[int, GramInMemory]:
    """Read the grams that are stored, and make and store the others, many at a time.

    They equal those from :func:`~trakstore.kernels.stored_grams.split_gram` to the bit. Nothing is done
    ahead on a local disk, or if all grams take more than an eighth of the memory limit.

    Returns
    -------
    dict of int to GramInMemory
        Grams by the position of the split among ``splits``, where this was worthwhile.
    """
    need_solver(solver)
    check_gram_dtype(dtype)
    asked = [
        _Asked(at, split, origin_of(split, dtype))
        for at, split in enumerate(splits)
        if _needs_gram(split, damping, solver, limit)
    ]
    size = sum(8 * one.features.shape[1] ** 2 for one in asked)
    # A single gram is read when it is needed: there is nothing to read at the same time.
    if len(asked) < 2 or size > limit // SHARE:
        return {}
    place = asked[0].split.location
    stored = all_at_once(place, [partial(read_gram, one.split, one.origin) for one in asked])
    grams = {one.at: read for one, read in zip(asked, stored, strict=True) if read is not None}
    # On a cluster, rows are better read where they are worked on.
    if active_client() is None:
        fresh = [one for one in asked if one.at not in grams]
        made = list(_made(fresh, limit - size, limit // SHARE, device))
        all_at_once(
            place, [partial(write_gram, one.split, read.gram, one.origin) for one, read in made]
        )
        grams |= {one.at: read for one, read in made}
    return grams


@dataclass(frozen=True, eq=False)
class _Asked:
    """A gram that will be needed, for the split at a position among the given ones."""

    at: int
    split: KernelSplit
    origin: GramOrigin

    @property
    def features(self) -> Rows:
        return self.split.column(layout.FEATURES)

    @property
    def row_bytes(self) -> int:
        """Bytes of all rows in memory, in whole chunks, and of their weights."""
        (rows, dim), step = self.features.shape, self.features.chunk_rows
        return -(-rows // step) * step * (dim * self.features.dtype.itemsize + 8)

    def fits(self, limit: int) -> bool:
        """Tell whether the gram can be made within a memory limit."""
        rows, computed = self.features, np.dtype(self.origin.dtype).itemsize
        parts = gram_bytes(rows.shape[1], tile_rows(rows), rows.dtype.itemsize, computed)
        return with_slack(sum(parts)) <= limit


def _needs_gram(split: KernelSplit, damping: Damping, solver: Solver | None, limit: int) -> bool:
    """Tell whether a split that is not on a local disk gets a solver that takes a gram."""
    if split.location.near:
        return False
    chosen = solver or solver_of(split, damping, limit)
    return chosen.form == "matrix"


def _made(
    asked: Sequence[_Asked], limit: int, room: int, device: str
) -> Iterator[tuple[_Asked, GramInMemory]]:
    """Make grams of the splits whose rows fit ``room`` bytes; larger ones are left out.

    For a moment rows are in memory twice: as they were read, and as arrays.
    """
    ahead, left = min(AHEAD_BYTES, room // 2), limit - room
    small = [one for one in asked if one.row_bytes <= ahead and one.fits(left)]
    for batch in _batches(small, ahead):
        columns = [(one.features, row_weights(one.split)) for one in batch]
        with together(((rows, 0, one[0].shape[0]) for one in columns for rows in one), ahead):
            held = [(_held(rows), weights and _held(weights)) for rows, weights in columns]
        for one, (rows, weights) in zip(batch, held, strict=True):
            how: Any = {"dtype": one.origin.dtype, "memory_limit": left, "device": device}
            made = gram(rows, weights, **how)
            made = replace(made, rows=unmasked_count(one.split))
            yield one, GramInMemory(made, one.origin, masked_rows(one.split))


def _batches(asked: Sequence[_Asked], room: int) -> Iterator[list[_Asked]]:
    """Yield splits in order, as many at a time as have their rows in ``room`` bytes."""
    batch: list[_Asked] = []
    for one in asked:
        if batch and sum(other.row_bytes for other in [*batch, one]) > room:
            yield batch
            batch = []
        batch.append(one)
    if batch:
        yield batch


def _held(rows: Rows) -> ArrayRows:
    """Read all rows into memory, with the tiles that they have on disk.

    The tiles determine the order of the sums, and with it the bits of the gram.
    """
    return ArrayRows(rows.read(0, rows.shape[0]), rows.chunk_rows)

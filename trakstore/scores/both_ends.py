"""Lists of both ends of one target's scores, in one pass that reports how far it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import xarray as xr

from trakstore.errors import TrakStoreError
from trakstore.passes.dask_cluster import active_client
from trakstore.passes.scheduler import map_reduce, one_blas_thread
from trakstore.planning import ranges
from trakstore.quantities import as_whole
from trakstore.scores.factored import Scores
from trakstore.scores.needed import need_scores
from trakstore.scores.parts import F32
from trakstore.scores.running_lists import Lists, Order, Running, merge
from trakstore.scores.streaming import WindowPass
from trakstore.scores.top_k import check_request, dataset_of, plan_top_k

_FEW_TILES = 4
_ENDS: tuple[Order, Order] = ("largest", "smallest")


class BothEnds(NamedTuple):
    """Lists of the train rows that a pass has seen.

    Attributes
    ----------
    share : float
        Share of the train rows that the pass has seen, 1.0 at the end.
    largest, smallest : Dataset
        As from :func:`trakstore.top_k`; places that are still free have score NaN and position -1.
    """

    share: float
    largest: xr.Dataset
    smallest: xr.Dataset


def both_ends(
    scores: Scores, k: int, *, stages: int = 1, memory_limit: int | str | None = None
) -> Iterator[BothEnds]:
    """Yield the largest and the smallest scores of one target, after each stage of a single pass.

    Parameters
    ----------
    scores : Scores
        Scores of one target.
    k : int
        Entries of each list.
    stages : int
        Parts of the pass; fewer if there are fewer tiles of train rows.
    memory_limit : int or str, optional
        Bytes of one process; a quarter of the available memory when None.

    Yields
    ------
    BothEnds
        The last one is exact, and equal to the bit to ``top_k`` with ``order="largest"`` and
        ``"smallest"``.

    Raises
    ------
    TrakStoreError
        When there is more than one target, ``k`` is not in 1..train rows, or ``stages`` is below 1.
    NumericsError
        When a score is NaN or infinite.
    MemoryLimitError
        When the plan does not fit the memory limit.
    """
    need_scores(scores)
    (targets, columns), step = scores.shape, scores.tile_rows
    if targets != 1:
        raise TrakStoreError(f"both ends are listed of one target, got {targets}")
    k = check_request(k, columns, "largest")
    stages = as_whole(stages, "stages", 1)
    plan = plan_top_k(scores.sizes, 2 * k, None, memory_limit)
    one = _BothPass(step, scores.window(0, 1, plan.ahead), 0, k)
    lists: tuple[Lists, Lists] | None = None
    tiles = -(-columns // step)
    for first, last in ranges(tiles, -(-tiles // min(stages, tiles))):
        # Stages are whole tiles, as in a single pass: the rounding of a product depends on its shape.
        start, stop = first * step, min(last * step, columns)
        more = _over(one, start, stop, plan.workers)
        lists = more if lists is None else one.merge(lists, more)
        datasets = [
            dataset_of([end], scores, order) for end, order in zip(lists, _ENDS, strict=True)
        ]
        yield BothEnds(stop / columns, *datasets)


def _over(one: _BothPass, start: int, stop: int, workers: int) -> tuple[Lists, Lists]:
    # A short pass over rows in memory ends before tasks could be made of it; lists do not depend on how
    # the pass is cut.
    if active_client() is None and stop - start <= _FEW_TILES * one.step:
        with one_blas_thread():
            return one.over(start, stop)
    task = partial(_shifted, one, start)
    return map_reduce(task, stop - start, one.step, one.merge, workers=workers)


def _shifted(one: _BothPass, by: int, start: int, stop: int) -> tuple[Lists, Lists]:
    return one.over(by + start, by + stop)


@dataclass(frozen=True, eq=False)
class _BothPass(WindowPass[tuple[Running, Running], tuple[Lists, Lists]]):
    k: int

    @staticmethod
    def merge(left: tuple[Lists, Lists], right: tuple[Lists, Lists]) -> tuple[Lists, Lists]:
        return merge(left[0], right[0]), merge(left[1], right[1])

    def begin(self) -> tuple[Running, Running]:
        made = [Running(self.targets, self.k, np.dtype(np.float32), self.step) for _ in _ENDS]
        return made[0], made[1]

    def take(self, state: tuple[Running, Running], tile: F32, low: int) -> None:
        positions = np.arange(low, low + tile.shape[1])
        for running, order in zip(state, _ENDS, strict=True):
            running.offer(tile, self.first, positions, order)

    def end(self, state: tuple[Running, Running]) -> tuple[Lists, Lists]:
        return state[0].lists(), state[1].lists()

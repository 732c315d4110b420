"""Exact top-k of each target, in one streamed pass over the train rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, get_args

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import compute
from dask.delayed import delayed
from numpy.typing import NDArray

from trakstore.errors import TrakStoreError
from trakstore.passes.dask_cluster import active_client
from trakstore.passes.memory import fitting_slots, memory_budget
from trakstore.passes.one_pass import Tiles
from trakstore.passes.rows import ArrayRows, Rows, TakenRows, taken_rows, together
from trakstore.passes.scheduler import WAITING, merged_in_pairs
from trakstore.quantities import as_flag, as_whole, is_one_of
from trakstore.scores.classes import Groups, need_class_memory
from trakstore.scores.factored import Scores
from trakstore.scores.needed import need_scores, need_some_scores
from trakstore.scores.running_lists import (
    NOWHERE,
    STATE_BYTES,
    WAITING_BYTES,
    Lists,
    Order,
    Running,
    device_list_bytes,
    merge,
    select_bytes,
)
from trakstore.scores.selection import Where, train_groups
from trakstore.scores.streaming import WindowPass, each_window
from trakstore.scores.window_plans import ScoreSizes, WindowPlan, plan_windows

if TYPE_CHECKING:
    from trakstore.scores.device_lists import DeviceLists


def top_k(
    scores: Scores | xr.DataArray,
    k: int,
    *,
    order: Order = "largest",
    where: Where = None,
    per_class: bool = False,
    memory_limit: int | str | None = None,
) -> xr.Dataset:
    """List the k train rows with the first scores for each target, exactly.

    The matrix is never formed: windows of targets meet one tile of train rows after another, and
    only entries that beat a target's present k-th are looked at. The train features are read once
    for each window; memory is O(targets · k + a window of tiles).

    Parameters
    ----------
    scores : Scores or DataArray
        Factored scores, or any (lazy) array with the dimensions ``target`` and ``train``.
    k : int
        Entries of each list, 1 to the number of train rows.
    order : {"largest", "smallest", "magnitude"}
        Scores that come first. Equal scores are ordered by train position.
    where : array of bool, or ``{"id": [...]}``, or ``{"label": [...]}``, optional
        The train rows that may be listed: a boolean for each column of the scores, or those with
        one of these ids or labels. Only for ``Scores``.
    per_class : bool
        A list for each label, in the same pass: dimensions ``("target", "class", "rank")``; a class
        of fewer rows ends in NaN, position -1. Only for ``Scores`` with labels.
    memory_limit : int or str, optional
        Bytes of one process, such as ``"600MB"``; a quarter of the available memory when None.

    Returns
    -------
    Dataset
        Dimensions ``("target", "rank")``; ``score`` (float32; for a DataArray its own dtype),
        ``train`` (sample ids), ``position`` (int64, rows of the stored train split, masked ones
        counted); coordinate ``target_id``.

    Raises
    ------
    TrakStoreError
        ``k`` is not in 1..train rows, an unknown order, id or label.
    NumericsError
        A score is NaN or infinite.
    MemoryLimitError
        The plan does not fit the memory limit.

    Examples
    --------
    >>> scores = xr.DataArray([[0.5, -2.0, 1.0, 1.0]], dims=("target", "train"))
    >>> top_k(scores, 3)["position"].values
    array([[2, 3, 0]])
    >>> top_k(scores, 1, order="magnitude")["score"].values
    array([[-2.]])
    """
    per_class = as_flag(per_class, "per_class")
    if isinstance(scores, xr.DataArray):
        if where is not None or per_class:
            raise TrakStoreError("where= and per_class= are for Scores; select from the array")
        return _top_k_of_array(scores, k, order, memory_limit)
    need_targets(scores)
    columns = scores.shape[1]
    if where is not None or per_class:
        need_class_memory(columns, memory_limit)
    groups = train_groups(scores, where, per_class=per_class)
    k = check_request(k, columns if groups is None or per_class else groups.counts[0], order)
    plan = plan_top_k(scores.sizes, k, groups, memory_limit)
    select = partial(SelectPass, k=k, order=order, groups=groups)
    windows = each_window(scores, plan, select, f"top-{k}")
    by_group = [dataset_of(list(one), scores, order) for one in zip(*windows, strict=True)]
    if not per_class or groups is None:
        return by_group[0]
    joined = xr.concat(by_group, xr.DataArray(groups.labels, dims="class", name="class"))
    return joined.transpose("target", "class", "rank")


def plan_top_k(
    sizes: ScoreSizes, k: int, groups: Groups | None, memory_limit: int | str | None
) -> WindowPlan:
    """Plan windows of targets whose lists, and what they need on the way, fit the memory limit."""
    rows, count = sizes.targets, 1 if groups is None else len(groups.counts)
    fixed = rows * k * count * (2 * STATE_BYTES + sizes.id_bytes)
    state = (STATE_BYTES + WAITING_BYTES) * k * count
    # Groups need the number of each train row's, and a copy of a tile's columns of one of them.
    if groups is not None:
        fixed, state = fixed + groups.of.nbytes, state + 4 * sizes.tile_rows
    return plan_windows(
        sizes,
        f"top-{k} of {rows} targets",
        memory_limit,
        fixed_bytes=fixed,
        task_bytes=select_bytes(k, sizes.tile_rows),
        # Lists of ranges wait to be merged, and a merge makes as much again for its sort.
        target_bytes=(WAITING + 4) * STATE_BYTES * k * count,
        state_bytes=state,
        device_bytes=count * device_list_bytes(k, sizes.tile_rows),
    )


@dataclass(frozen=True, eq=False)
class SelectPass(WindowPass[list["Running | DeviceLists"], list[Lists]]):
    """The lists of a window, one for each group, where its tiles are; see :class:`Running`."""

    k: int
    order: Order
    groups: Groups | None
    takes_tensors: ClassVar[bool] = True

    @staticmethod
    def merge(left: list[Lists], right: list[Lists]) -> list[Lists]:
        return [merge(*pair) for pair in zip(left, right, strict=True)]

    @property
    def tile_rows(self) -> int:
        # Of tiles that are few, those without a row of a group are left out.
        at_once = self.device == "cpu" and self.groups is None
        return self.step * (self.window.steps_at_once(self.step) if at_once else 1)

    def tiles(self, start: int, stop: int) -> Tiles:
        """Return the tiles that hold a row of a group."""
        every = super().tiles(start, stop)
        return [one for one in every if self.groups is None or self.groups.reach(*one)]

    def begin(self) -> list[Running | DeviceLists]:
        return [self._lists() for _ in ([0] if self.groups is None else self.groups.counts)]

    def _lists(self) -> Running | DeviceLists:
        device = self.device
        if device == "cpu":
            return Running(self.targets, self.k, np.dtype(np.float32), self.tile_rows)
        from trakstore.scores.device_lists import DeviceLists

        return DeviceLists(self.targets, self.k, device)

    def take(self, state: list[Running | DeviceLists], tile: Any, low: int) -> None:
        if self.groups is None:
            state[0].offer(tile, self.first, np.arange(low, low + tile.shape[1]), self.order)
            return
        for group, columns in self.groups.within(low, low + tile.shape[1]):
            part = tile if len(columns) == tile.shape[1] else tile[:, columns]
            state[group].offer(part, self.first, columns + low, self.order)

    def end(self, state: list[Running | DeviceLists]) -> list[Lists]:
        return [one.lists() for one in state]


def need_targets(scores: Scores) -> None:
    """Raise a :class:`TrakStoreError` for anything but scores of one target and train row or more."""
    need_scores(scores)
    need_some_scores(scores)


def check_request(k: int, columns: int, order: Order) -> int:
    """Return the k as Python's own number.

    Raises
    ------
    TrakStoreError
        An unknown order, or a k that is not in 1..columns.
    """
    if not is_one_of(order, get_args(Order)):
        raise TrakStoreError(f"order must be one of {', '.join(get_args(Order))}, got {order!r}")
    return as_whole(k, "k", 1, columns, needed=f"must be in 1..{columns} (the train rows)")


def dataset_of(lists: list[Lists], scores: Scores, order: Order) -> xr.Dataset:
    """Put lists of windows one after the other, with the ids of their scores."""
    ids, positions = (scores.target_ids, scores.train_ids), scores.train_positions
    return _dataset(lists, *ids, positions, method=scores.method, order=order)


def _dataset(
    lists: list[Lists], target_ids: Rows, train_ids: Rows, positions: Rows | None, **attrs: str
) -> xr.Dataset:
    listed = Lists.joined(lists)
    score, position = listed.score, listed.position
    none = position == NOWHERE
    axis = np.where(none, 0, position).ravel()
    taken, targets = TakenRows(train_ids, axis), target_ids.shape[0]
    with together([(taken, 0, axis.size), (target_ids, 0, targets)]):
        train, target = taken.read(0, axis.size), target_ids.read(0, targets)
    if positions is not None:
        position = taken_rows(positions, axis.reshape(none.shape))
    # A class of fewer than k rows leaves places free.
    if none.any():
        score[none], position[none] = np.nan, -1
        train[none.ravel()] = "" if train.dtype.kind in "TUO" else -1
    dims = ("target", "rank")
    return xr.Dataset(
        {
            "score": (dims, score),
            "train": (dims, train.reshape(position.shape)),
            "position": (dims, position),
        },
        coords={"target_id": ("target", target)},
        attrs=attrs,
    )


def _top_k_of_array(
    array: xr.DataArray, k: int, order: Order, memory_limit: int | str | None
) -> xr.Dataset:
    if set(array.dims) != {"target", "train"}:
        raise TrakStoreError(f"top_k needs the dimensions (target, train), got {array.dims}")
    array = array.transpose("target", "train")
    need_some_scores(array)
    k = check_request(k, array.sizes["train"], order)
    data = da.asarray(array.data)
    data = data if data.dtype.kind == "f" else data.astype(np.float64)
    workers = _block_workers(data, k, memory_limit)
    lists = list(compute(*_block_lists(data, k, order), **workers))
    target, train = (ArrayRows(_ids(array, dim)) for dim in ("target", "train"))
    return _dataset(lists, target, train, None, method=str(array.name or "scores"), order=order)


def _block_workers(data: da.Array, k: int, memory_limit: int | str | None) -> dict[str, int]:
    """Plan the tasks at once: each has a block, a copy of it, and its lists."""
    rows, columns = (max(lengths) for lengths in data.chunks)
    block = 2 * rows * columns * data.dtype.itemsize + select_bytes(k, columns)
    block += rows * k * (STATE_BYTES + WAITING_BYTES)
    lists = (data.shape[0] + 10 * rows) * k * 3 * 8
    what = f"top-{k} of blocks of ({rows}, {columns}) (rechunk the array, or)"
    workers = fitting_slots(lists, block, memory_budget(memory_limit), what)
    return {"num_workers": workers} if active_client() is None else {}


def _block_lists(data: da.Array, k: int, order: Order) -> list[Any]:
    """Return the lists of each row of blocks: those of its blocks, merged."""
    select = delayed(_select_block, pure=False)
    tops, lefts = (np.cumsum([0, *lengths[:-1]]).tolist() for lengths in data.chunks)
    return [
        merged_in_pairs(
            [select(block, top, left, k, order) for block, left in zip(row, lefts, strict=True)],
            merge,
        )
        for row, top in zip(data.to_delayed(), tops, strict=True)
    ]


def _select_block(block: NDArray[Any], target: int, train: int, k: int, order: Order) -> Lists:
    running = Running(len(block), k, block.dtype, block.shape[1])
    running.offer(block, target, np.arange(train, train + block.shape[1]), order)
    return running.lists()


def _ids(array: xr.DataArray, dim: str) -> NDArray[Any]:
    name = f"{dim}_id"
    return array.coords[name].values if name in array.coords else np.arange(array.sizes[dim])

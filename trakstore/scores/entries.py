"""Saved scores of which only some are kept: the first of each target, or those above a threshold.

Both are written window of targets after window; what a stopped save wrote of a window is kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import LARGER_LIMIT, MemoryLimitError, NumericsError, TrakStoreError
from trakstore.passes.memory import memory_budget
from trakstore.planning import CHUNK_BYTES, human_bytes
from trakstore.progress import ProgressLine, on_terminal
from trakstore.quantities import as_number, as_whole
from trakstore.scores.factored import Scores
from trakstore.scores.narrowing import narrowed
from trakstore.scores.parts import F32
from trakstore.scores.streaming import plan_windows
from trakstore.scores.top_k import plan_top_k, top_k
from trakstore.scores.window_pass import WindowPass
from trakstore.storage import layout
from trakstore.storage.backends.chunks import TAIL
from trakstore.storage.backends.location import Location
from trakstore.storage.tables.saved_arrays import SavedArray
from trakstore.storage.tables.saved_table import begin_table, pending_arrays

__all__ = ["Begun", "begin_save", "check_kept", "save_above", "save_top", "written_chunks"]

ENTRY_BYTES = 4 + 8 + 8  # score, column, and the target's row in the window
ENTRY_CHUNK = CHUNK_BYTES // 8
TASK_SHARE, WINDOW_SHARE = 32, 8  # one part in so many of the limit is for entries


@dataclass(frozen=True)
class Begun:
    """A save that is under way: its arrays, and the group's document meanwhile."""

    arrays: list[SavedArray]
    document: bytes


def begin_save(
    location: Location, path: str, arrays: list[SavedArray], token: str, most: int | None = None
) -> Begun:
    """The arrays to write: new ones, or those that a stopped save of the same scores began.

    Those may have chunks of another number of targets, ``most`` at most, since there was other memory
    then. While a save runs, the group's document says of what.
    """
    document = location.get(layout.document_key(path))
    begun = pending_arrays(document, token)
    alike = list(map(_without_height, begun)) == list(map(_without_height, arrays))
    if document is not None and alike and (most is None or begun[0].chunks[0] <= most):
        return Begun(begun, document)
    return Begun(arrays, begin_table(location, path, arrays, token))


def _without_height(array: SavedArray) -> SavedArray:
    return replace(array, chunks=(0, *array.chunks[1:]))


def written_chunks(location: Location, path: str, array: SavedArray) -> frozenset[tuple[int, ...]]:
    """The chunks of an array that are there; an empty one, after a power loss, is not."""
    found: list[tuple[int, ...]] = [()]
    for _ in array.shape:
        found = [
            (*at, int(name))
            for at in found
            for name in location.names(layout.chunk_key(layout.child(path, array.name), at))
            if name.isdigit()
        ]
    keys = [layout.chunk_key(layout.child(path, array.name), at) for at in found]
    ends = location.get_tails(keys, TAIL)
    return frozenset(at for at, end in zip(found, ends, strict=True) if end)


def save_top(
    scores: Scores,
    location: Location,
    path: str,
    k: int,
    token: str,
    dtype: str,
    memory_limit: int | str | None,
) -> Begun:
    """The k scores of largest magnitude of each target: ``score``, ``position`` and ``train``."""
    rows, planned = scores.shape[0], plan_top_k(scores, k, None, memory_limit).targets
    ids = "str" if scores.train_ids.dtype.kind in "TUO" else "int64"
    arrays = [
        SavedArray(name, kind, (rows, k), (planned, k), ("target", "rank"))
        for name, kind in (("score", dtype), ("position", "int64"), ("train", ids))
    ]
    begun = begin_save(location, path, arrays, token)
    arrays, height = begun.arrays, begun.arrays[0].chunks[0]
    done = frozenset.intersection(*(written_chunks(location, path, one) for one in arrays))
    for at, start in enumerate(range(0, rows, height)):
        if (at, 0) in done:
            continue
        targets = range(start, min(rows, start + height))
        top = top_k(scores.isel(target=targets), k, order="magnitude", memory_limit=memory_limit)
        for array in arrays:
            values = top[array.name].values
            if array.name == "score":
                values = narrowed(values, dtype, f"scores of targets {start}..{targets.stop}")
            array.open_to_write(location, path)[start : targets.stop] = values
    return begun


def save_above(
    scores: Scores,
    location: Location,
    path: str,
    threshold: float,
    token: str,
    dtype: str,
    memory_limit: int | str | None,
) -> Begun:
    """All |score| >= threshold, target by target: ``stop``, ``column`` and ``score``.

    ``stop`` ends each target's entries; its chunk is written last of a window's, and so says that
    the window is there.
    """
    rows, columns = scores.shape
    limit = memory_budget(memory_limit)
    fixed = 4 * limit // WINDOW_SHARE  # a window's entries, sorted, and what waits to be merged
    plan = plan_windows(scores, "scores above a threshold", limit, fixed_bytes=fixed)
    stop = SavedArray("stop", "int64", (rows,), (plan.targets,), ("target",))
    size = rows * columns  # until it is known how many there are
    begun = begin_save(location, path, [stop, *_entries(size, dtype)], token, plan.targets)
    stop = begun.arrays[0]
    plan = replace(plan, targets=stop.chunks[0])
    done, total = written_chunks(location, path, stop), 0
    into, *entries = (
        array.open_to_write(location, path) for array in (stop, *_entries(size, dtype))
    )
    with ProgressLine("scores", size, unit="scores", show=on_terminal()) as progress:
        for at, (first, last) in enumerate(plan.windows(rows)):
            if (at,) in done:
                total = int(into[last - 1])
            else:
                window = scores.window(first, last, plan.ahead)
                most = _Most(threshold, last - first, limit)
                one = _AbovePass(scores.tile_rows, window, first, most)
                found = one.run(columns, workers=plan.workers)
                order = np.argsort(found.row, kind="stable")  # columns ascend within a target
                what = f"scores of targets {first}..{last}"
                values = (found.column[order], narrowed(found.score[order], dtype, what))
                for array, value in zip(entries, values, strict=True):
                    array[total : total + len(order)] = value
                counts = np.bincount(found.row, minlength=last - first)
                into[first:last] = total + np.cumsum(counts)
                total += len(order)
            progress.advance((last - first) * columns)
    made = [stop, *_entries(total, dtype)]
    location.put({layout.document_key(path, one.name): one.document for one in made})
    return replace(begun, arrays=made)


def _entries(count: int, dtype: str) -> list[SavedArray]:
    return [
        SavedArray(name, kind, (count,), (ENTRY_CHUNK,), ("entry",))
        for name, kind in (("column", "int64"), ("score", dtype))
    ]


@dataclass(frozen=True)
class _Most:
    """How many entries fit: of targets above a threshold, within a memory limit."""

    threshold: float
    targets: int
    limit: int

    def check(self, count: int, share: int) -> None:
        """Raise a :class:`MemoryLimitError` where so many take more than a share of the limit."""
        if count * ENTRY_BYTES > self.limit // share:
            raise MemoryLimitError(
                f"more than {count:,} scores of {self.targets} targets pass the threshold "
                f"{self.threshold:g}, too many for the memory limit of {human_bytes(self.limit)}: "
                f"raise the threshold, {LARGER_LIMIT}, or save the whole matrix"
            )


@dataclass(frozen=True, eq=False)
class _Entries:
    row: NDArray[np.int64]
    column: NDArray[np.int64]
    score: NDArray[np.float32]
    most: _Most


def _merged(left: _Entries, right: _Entries) -> _Entries:
    left.most.check(len(left.row) + len(right.row), WINDOW_SHARE)
    return _joined([left, right])


def _joined(parts: list[_Entries]) -> _Entries:
    rows, columns = [one.row for one in parts], [one.column for one in parts]
    scores = np.concatenate([one.score for one in parts])
    return _Entries(np.concatenate(rows), np.concatenate(columns), scores, parts[0].most)


@dataclass(frozen=True, eq=False)
class _AbovePass(WindowPass[list[_Entries], _Entries]):
    """Entries whose magnitude is a threshold or more."""

    most: _Most
    merge = staticmethod(_merged)

    def begin(self) -> list[_Entries]:
        return []

    def take(self, state: list[_Entries], tile: F32, low: int) -> None:
        if not np.isfinite(np.add.reduce(tile, axis=None)) and not np.isfinite(tile).all():
            raise NumericsError(
                f"scores with train rows {low}..{low + tile.shape[1]} are not finite; look at the "
                f"features with `trakstore kernel`"
            )
        row, column = np.nonzero(np.abs(tile) >= self.most.threshold)
        state.append(_Entries(row, column + low, tile[row, column], self.most))
        self.most.check(sum(len(one.row) for one in state), TASK_SHARE)

    def end(self, state: list[_Entries]) -> _Entries:
        return _joined(state)


def check_kept(
    scores: Scores, top: int | None, threshold: float | None
) -> tuple[int | None, float | None]:
    """The two as Python's own numbers; a ``top`` or ``threshold`` that means nothing is refused."""
    if top is not None and threshold is not None:
        raise TrakStoreError("top and threshold exclude each other: give one of them, or neither")
    if top is not None:
        columns = scores.shape[1]
        top = as_whole(top, "top", 1, columns, needed=f"must be in 1..{columns} (the train rows)")
    if threshold is not None:
        threshold = as_number(
            threshold, "threshold", above=0, needed="must be a finite number above 0"
        )
    return top, threshold

"""Saved scores of which only some are kept: the first of each target, or those above a threshold.

Both are written by windows of targets, so that a save that stopped keeps its finished windows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import LARGER_LIMIT, MemoryLimitError, NumericsError, TrakStoreError
from trakstore.passes.memory import memory_budget
from trakstore.planning import CHUNK_BYTES, human_bytes
from trakstore.progress import ProgressLine, on_terminal
from trakstore.quantities import as_number, as_whole
from trakstore.scores.factored import Scores
from trakstore.scores.save import Begun, Save, narrowed
from trakstore.scores.streaming import WindowPass
from trakstore.scores.top_k import plan_top_k, top_k
from trakstore.scores.window_plans import plan_windows
from trakstore.storage import layout
from trakstore.storage.tables.saved_arrays import SavedArray

# An entry is its target's row in the window, its column, and its score.
ENTRY = np.dtype([("row", np.int64), ("column", np.int64), ("score", np.float32)])
ENTRY_CHUNK = CHUNK_BYTES // 8
# The entries of a task, and those of a window, may each take one part in so many of the limit.
TASK_SHARE, WINDOW_SHARE = 32, 8


def save_top(save: Save, k: int) -> Begun:
    """Write the k scores of largest magnitude of each target: ``score``, ``position`` and ``train``."""
    scores, rows = save.scores, save.scores.shape[0]
    planned = plan_top_k(scores.sizes, k, None, save.memory_limit).targets
    ids = "str" if scores.train_ids.dtype.kind in "TUO" else "int64"
    arrays = [
        SavedArray(name, kind, (rows, k), (planned, k), ("target", "rank"))
        for name, kind in (("score", save.dtype), ("position", "int64"), ("train", ids))
    ]
    begun = save.begin(arrays)
    height = begun.arrays[0].chunks[0]
    done = frozenset.intersection(*(save.written(one) for one in begun.arrays))
    for at, start in enumerate(range(0, rows, height)):
        # A window is complete once all three of its chunks are there.
        if (at, 0) in done:
            continue
        targets = range(start, min(rows, start + height))
        chosen = scores.isel(target=targets)
        top = top_k(chosen, k, order="magnitude", memory_limit=save.memory_limit)
        what = f"scores of targets {start}..{targets.stop}"
        top["score"] = (top["score"].dims, narrowed(top["score"].values, save.dtype, what))
        for array in begun.arrays:
            save.write(array, top[array.name].values, start)
    return begun


def save_above(save: Save, threshold: float) -> Begun:
    """Write all |score| >= threshold, target by target: ``stop``, ``column`` and ``score``.

    ``stop`` ends each target's entries. Of a window, its chunk is written last, and so shows that the
    window is complete.
    """
    scores, (rows, columns) = save.scores, save.scores.shape
    limit = memory_budget(save.memory_limit)
    # The window's sorted entries, and entries that wait to be merged into them.
    fixed = 4 * limit // WINDOW_SHARE
    sizes = scores.sizes
    # On a GPU a tile comes with its magnitudes and a mask.
    there = 6 * sizes.tile_rows
    what = "scores above a threshold"
    plan = plan_windows(sizes, what, limit, fixed_bytes=fixed, device_bytes=there)
    stop = SavedArray("stop", "int64", (rows,), (plan.targets,), ("target",))
    # The number of entries is not known yet, so that the arrays are as long as there are scores.
    size = rows * columns
    begun = save.begin([stop, *_entry_arrays(size, save.dtype)], plan.targets)
    stop = begun.arrays[0]
    plan = replace(plan, targets=stop.chunks[0])
    done, total = save.written(stop), 0
    place, entries = (save.location, save.path), _entry_arrays(size, save.dtype)
    with ProgressLine("scores", size, unit="scores", show=on_terminal()) as progress:
        for at, (first, last) in enumerate(plan.windows(rows)):
            if (at,) in done:
                # The entries of this window end where its last target's do.
                total = int(stop.open(*place)[last - 1])
            else:
                window = scores.window(first, last, plan.ahead)
                most = _Most(threshold, last - first, limit)
                one = _AbovePass(scores.tile_rows, window, first, most)
                kept = one.run(columns, workers=plan.workers).entries
                # Tiles come in the order of their columns, which a stable sort keeps within each
                # target.
                kept = kept[np.argsort(kept["row"], kind="stable")]
                what = f"scores of targets {first}..{last}"
                values = kept["column"], narrowed(kept["score"], save.dtype, what)
                for array, value in zip(entries, values, strict=True):
                    array.append(*place, value, total)
                counts = np.bincount(kept["row"], minlength=last - first)
                save.write(stop, total + np.cumsum(counts), first)
                total += len(kept)
            progress.advance((last - first) * columns)
    # The chunks stay; only the arrays' documents are given the number of entries.
    made = [stop, *_entry_arrays(total, save.dtype)]
    documents = {layout.document_key(save.path, one.name): one.document for one in made}
    save.location.put(documents)
    return replace(begun, arrays=made)


def _entry_arrays(count: int, dtype: str) -> list[SavedArray]:
    return [
        SavedArray(name, kind, (count,), (ENTRY_CHUNK,), ("entry",))
        for name, kind in (("column", "int64"), ("score", dtype))
    ]


@dataclass(frozen=True)
class _Most:
    """Limit on the number of entries above a threshold, from the memory limit."""

    threshold: float
    targets: int
    limit: int

    def check(self, count: int, share: int) -> None:
        """Raise a :class:`MemoryLimitError` if so many entries exceed their share of the limit."""
        if count * ENTRY.itemsize > self.limit // share:
            raise MemoryLimitError(
                f"more than {count:,} scores of {self.targets} targets pass the threshold "
                f"{self.threshold:g}, too many for the memory limit of {human_bytes(self.limit)}: "
                f"raise the threshold, {LARGER_LIMIT}, or save the whole matrix"
            )


@dataclass(frozen=True, eq=False)
class _Entries:
    """Entries of a range, in the order of their tiles; merging raises when there are too many."""

    entries: NDArray[np.void]
    most: _Most


@dataclass(frozen=True, eq=False)
class _AbovePass(WindowPass[list[NDArray[np.void]], _Entries]):
    """Pass that collects the entries whose magnitude reaches a threshold."""

    most: _Most
    takes_tensors: ClassVar[bool] = True

    @staticmethod
    def merge(left: _Entries, right: _Entries) -> _Entries:
        left.most.check(len(left.entries) + len(right.entries), WINDOW_SHARE)
        return _Entries(np.concatenate([left.entries, right.entries]), left.most)

    def begin(self) -> list[NDArray[np.void]]:
        return []

    def take(self, state: list[NDArray[np.void]], tile: Any, low: int) -> None:
        row, column, score = self._above(tile, low)
        entries = np.empty(len(row), dtype=ENTRY)
        entries["row"], entries["column"], entries["score"] = row, column + low, score
        state.append(entries)
        self.most.check(sum(map(len, state)), TASK_SHARE)

    def _above(self, tile: Any, low: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Return row, column and score of a tile's entries."""
        if not isinstance(tile, np.ndarray):
            from trakstore.scores.device_lists import entries_above

            return entries_above(tile, self.most.threshold)
        # If the sum is finite, so are all its terms.
        if not np.isfinite(np.add.reduce(tile, axis=None)) and not np.isfinite(tile).all():
            raise NumericsError(
                f"scores with train rows {low}..{low + tile.shape[1]} are not finite; look at the "
                f"features with `trakstore kernel`"
            )
        row, column = np.nonzero(np.abs(tile) >= self.most.threshold)
        return row, column, tile[row, column]

    def end(self, state: list[NDArray[np.void]]) -> _Entries:
        return _Entries(np.concatenate(state), self.most)


def check_kept(
    scores: Scores, top: int | None, threshold: float | None
) -> tuple[int | None, float | None]:
    """Return ``top`` and ``threshold`` as Python numbers; refuse values without meaning."""
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

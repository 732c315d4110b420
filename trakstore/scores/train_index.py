"""``TrainIndex``: codes of train rows in memory, by which candidates of a list are found."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import DamagedError, LocationError, NotFoundError
from trakstore.passes.memory import memory_budget
from trakstore.passes.rows import ArrayRows, PositionRows, Rows, TakenRows, whole_column
from trakstore.passes.scheduler import one_blas_thread, task_slots
from trakstore.planning import fit_slots, ranges
from trakstore.scores.factored import Scores
from trakstore.scores.index_rows import IndexedRows, indexed_rows
from trakstore.scores.level_products import AT_ONCE
from trakstore.scores.needed import need_scores
from trakstore.scores.parts import F32, Window
from trakstore.scores.row_codes import Coder, Codes, estimates, need_compiler
from trakstore.scores.running_lists import Lists, Order, check_finite, first_of, keys
from trakstore.storage.eight_bits import dequantised
from trakstore.storage.row_reads import read_single_rows
from trakstore.storage.tables.index_documents import (
    IndexDocument,
    Recall,
    codes_digest,
    read_index,
)
from trakstore.storage.tables.saved_arrays import SavedArray
from trakstore.storage.tables.table_array import READ_AT_ONCE

# Rows that one thread estimates at a time.
_SCAN_ROWS = 2**14
# Candidates of a list: so many at least, one for so many rows, and so many for each entry.
LEAST_CANDIDATES, ROWS_PER_CANDIDATE, CANDIDATES_PER_ENTRY = 512, 2048, 10


def usual_candidates(k: int, rows: int) -> int:
    """Return the candidates of a list where none are asked for.

    Examples
    --------
    >>> usual_candidates(10, 1500), usual_candidates(10, 100_000), usual_candidates(10, 1_000_000)
    (512, 512, 512)
    """
    wanted = max(LEAST_CANDIDATES, rows // ROWS_PER_CANDIDATE, CANDIDATES_PER_ENTRY * k)
    return min(rows, wanted)


@dataclass(frozen=True, eq=False)
class EpochIndex:
    """An index of the train rows of one epoch, open: its codes are in memory.

    Attributes
    ----------
    document : IndexDocument
        Its rows, and recalls that were measured.
    path : str
        Its group in the store.
    coder : Coder
    codes : Codes
    checksums : ndarray of uint32, shape (n,)
        Checksums of the stored rows.
    """

    document: IndexDocument
    path: str
    coder: Coder
    codes: Codes
    checksums: NDArray[np.uint32]

    @classmethod
    def read(
        cls, rows: IndexedRows, document: IndexDocument, arrays: Sequence[SavedArray]
    ) -> EpochIndex:
        """Read the codes into memory.

        Raises
        ------
        DamagedError
            When a chunk is not the one that was written.
        """
        read = {one.name: one.open(rows.location, rows.path)[...] for one in arrays}
        codes = Codes(read["level"], read["share"], read["step"])
        coder = Coder.of(read["direction"], document.seed)
        return cls(document, rows.path, coder, codes, read["checksum"])

    def estimate(self, out: F32, lefts: F32) -> None:
        """Write estimates of the products of left factors (m, k) with all rows, shape (m, n)."""
        targets = [self.coder.target(left) for left in lefts]

        def scan(low: int, high: int) -> None:
            estimates(out[:, low:high], self.codes.rows(low, high), targets)

        with ThreadPoolExecutor(task_slots()) as pool:
            list(pool.map(lambda one: scan(*one), ranges(out.shape[1], _SCAN_ROWS)))


@dataclass(frozen=True, eq=False, repr=False)
class TrainIndex:
    """An index of the train rows of scores, open.

    Attributes
    ----------
    parts : tuple of EpochIndex
        The index of each epoch, in the order of the scores' parts.
    """

    parts: tuple[EpochIndex, ...]
    _columns: dict[str, NDArray[Any]] = field(default_factory=dict)

    def __repr__(self) -> str:
        known = [f"{each.recall:.3f} at {each.k} ({each.method})" for each in self.recalls]
        paths = ", ".join(one.path for one in self.parts)
        return f"<TrainIndex {paths} (train: {self.rows}), recall {', '.join(known) or 'not measured'}>"

    @property
    def rows(self) -> int:
        """Rows of the train split, masked ones included."""
        return self.parts[0].document.rows

    @property
    def recalls(self) -> tuple[Recall, ...]:
        """Recalls that were measured, one for each kind of scores of these epochs."""
        documents = [one.document for one in self.parts]
        own = tuple(one.epoch for one in documents), codes_digest(documents)
        return tuple(one for one in documents[0].recalls if (one.epochs, one.codes) == own)

    @property
    def nbytes(self) -> int:
        """Bytes of its codes and checksums."""
        return sum(a.nbytes for one in self.parts for a in (*one.codes, one.checksums))

    def candidates(
        self, scores: Scores, window: Window, count: int, order: Order
    ) -> list[NDArray[np.int64]]:
        """Find the columns of the scores that come first for each target of a window, ascending."""
        columns, targets = scores.shape[1], len(window.lefts[0])
        total = np.zeros((targets, columns), np.float32)
        estimate = np.empty((targets, self.rows), np.float32)
        positions = self.positions(scores)
        # Tiny gradients make tiny targets, whose products would vanish in float32. A power of two
        # changes no other bit, and one for all epochs leaves the ranking of their sum as it is.
        most = np.max([np.abs(left).max(axis=1, initial=0) for left in window.lefts], axis=0)
        exponents = -np.frexp(most)[1][:, None]
        for part, left, scale in zip(self.parts, window.lefts, window.scales, strict=True):
            part.estimate(estimate, np.ldexp(left, exponents))
            column = None if scale is None else self._whole(scale)
            for own, every in zip(total, estimate, strict=True):
                taken = every[:columns] if positions is None else every[positions]
                own += taken if column is None else taken * column
        if window.scale is not None:
            total *= self._whole(window.scale)
        first = columns - count
        return [np.sort(np.argpartition(keys(own, order), first)[first:]) for own in total]

    def positions(self, scores: Scores) -> NDArray[np.int64] | None:
        """Return the stored position of each column of the scores; None where they are its number."""
        rows = scores.train_positions
        return None if rows is None or isinstance(rows, PositionRows) else self._kept(rows)

    def _whole(self, scale: Rows) -> F32:
        """Return a column of scales."""
        return self._kept(scale).astype(np.float32)

    def _kept(self, rows: Rows) -> NDArray[Any]:
        """Return a column, which is kept: reading it takes as long as comparing all codes."""
        kept = self._columns.pop(rows.token, None)
        column = whole_column(rows) if kept is None else kept
        # The last is that which was asked for last. Each selection of train rows has other columns:
        # those of the two latest stay. Several threads may be here, which at worst read one twice.
        self._columns[rows.token] = column
        for old in [*self._columns][: -2 * (len(self.parts) + 2)]:
            self._columns.pop(old, None)
        return column

    def rescored(
        self, scores: Scores, window: Window, at: int, near: NDArray[np.int64], first: int
    ) -> tuple[F32, NDArray[np.int64]]:
        """Return the exact scores of one target of a window with columns (c,), and their positions."""
        positions = self.positions(scores)
        stored = near if positions is None else positions[near]
        # Rows of one chunk are read together.
        near, stored = near[np.argsort(stored)], np.sort(stored)
        trains = []
        for part, rows in zip(self.parts, indexed_rows(scores), strict=True):
            column = rows.column
            own = read_single_rows(column, stored, part.checksums[stored])
            if column.scale is not None:
                own = dequantised(own, TakenRows(column.scale, stored).read(0, len(stored)))
            trains.append(ArrayRows(own))
        taken = [scale and ArrayRows(self._whole(scale)[near]) for scale in window.scales]
        one = replace(
            window.of_targets(at, at + 1).on_cpu(),
            trains=tuple(trains),
            scales=tuple(taken),
            scale=window.scale and ArrayRows(self._whole(window.scale)[near]),
        )
        with one_blas_thread():
            score = one.tile(0, len(near))
        check_finite(score, first + at, near)
        return score, near

    def lists(
        self, scores: Scores, window: Window, first: int, k: int, count: int, order: Order
    ) -> Lists:
        """Return the lists of a window of targets whose first is ``first`` among all."""
        made = []
        for low, high in ranges(len(window.lefts[0]), AT_ONCE):
            some = self.candidates(scores, window.of_targets(low, high), count, order)
            for at, near in enumerate(some, low):
                score, columns = self.rescored(scores, window, at, near, first)
                made.append(first_of(Lists(keys(score, order), score, columns[None]), k))
        return Lists.joined(made)


def need_index_memory(
    each: Sequence[tuple[IndexDocument, Sequence[SavedArray]]], limit: int
) -> None:
    """Raise a :class:`MemoryLimitError` where the arrays of the indexes do not fit in memory."""
    every = [one for _, arrays in each for one in arrays]
    sizes = sum(one.chunk_count * one.form.size for one in every)
    # The chunks of an array that are on their way; the estimates of a few targets, and scales.
    ahead = max(min(READ_AT_ONCE, one.chunk_count) * one.form.size for one in every)
    fixed = ahead + 64 * each[0][0].rows
    fit_slots(1, 1, fixed, sizes, limit, "the index in memory")


def open_index(scores: Scores, *, memory_limit: int | str | None = None) -> TrainIndex:
    """Open the stored index of the train rows of scores, to ask it more than once.

    Parameters
    ----------
    scores : Scores
        Scores of any targets with these train rows, by any method and kernel.
    memory_limit : int or str, optional
        Bytes of one process; a quarter of the available memory when None.

    Returns
    -------
    TrainIndex

    Raises
    ------
    NotFoundError
        When there is no index of these rows.
    SpecMismatchError
        When it is of other epochs, features or fewer rows.
    MemoryLimitError
        When the codes do not fit.
    LocationError
        When another process built the index meanwhile: the same call works once that has ended.

    Examples
    --------
    >>> scores = ts.grad_dot_scores(store, epochs=[2, 5])
    >>> index = ts.build_index(scores, k=3)
    >>> ts.open_index(scores).rows
    24
    """
    need_scores(scores)
    need_compiler()
    every = indexed_rows(scores)
    found = [_found(rows) for rows in every]
    need_index_memory(found, memory_budget(memory_limit))
    return TrainIndex(tuple(map(_opened, every, found)))


def _found(rows: IndexedRows) -> tuple[IndexDocument, list[SavedArray]]:
    found = read_index(rows.location, rows.path)
    if found is None:
        raise NotFoundError(rows.missing())
    document, arrays = found
    rows.refuse_other(document)
    return document, list(arrays.values())


def _opened(rows: IndexedRows, found: tuple[IndexDocument, list[SavedArray]]) -> EpochIndex:
    try:
        return EpochIndex.read(rows, *found)
    except DamagedError as error:
        # A build that began after the document was read replaces chunks one by one.
        now = read_index(rows.location, rows.path)
        if now is not None and now[0] == found[0]:
            raise
        raise LocationError(
            f"the index at {rows.path} of {rows.location} was built again, or is being built, while it "
            f"was read: try again"
        ) from error

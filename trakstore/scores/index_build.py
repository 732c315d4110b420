"""Building an index: codes of a store's train rows, block by block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import DamagedError
from trakstore.passes.memory import fitting_slots, memory_budget
from trakstore.passes.one_pass import Pass, Tiles, nothing
from trakstore.passes.scheduler import tile_rows
from trakstore.planning import ranges
from trakstore.progress import ProgressLine, on_terminal
from trakstore.quantities import as_flag, as_whole
from trakstore.scores.factored import Scores
from trakstore.scores.index_recall import has_fallen, measured
from trakstore.scores.index_rows import IndexedRows, indexed_rows
from trakstore.scores.needed import need_scores, need_train_rows
from trakstore.scores.parts import F32
from trakstore.scores.row_codes import Coder, need_compiler
from trakstore.scores.top_k import plan_top_k
from trakstore.scores.train_index import EpochIndex, TrainIndex, need_index_memory
from trakstore.storage.backends.location import Location
from trakstore.storage.claims import claimed
from trakstore.storage.row_reads import row_checksums
from trakstore.storage.stored import StoredColumn
from trakstore.storage.tables.index_documents import (
    IndexDocument,
    Recall,
    check_index,
    chunk_rows_of,
    drop_older_indexes,
    known_index,
)
from trakstore.storage.tables.saved_arrays import SavedArray
from trakstore.storage.tables.saved_table import (
    begin_longer_table,
    begin_table,
    check_table,
    publish_table,
)

# Places of a split by whose rows the directions apart are found, and rows of each. They are many, since
# rows may be sorted by source.
_PLACES, _PLACE_ROWS = 16, 128
_ENTRIES = 10  # of a list that recall is measured on


def build_index(
    scores: Scores,
    *,
    k: int = _ENTRIES,
    checked: int = 16,
    seed: int = 0,
    anew: bool = False,
    memory_limit: int | str | None = None,
) -> TrainIndex:
    r"""Build, or bring up to date, the index that :func:`approximate_top_k` finds candidates with.

    Of each train row the index keeps its share of the few directions in which rows are large, and four
    bits for each column of what is left, mixed by a random orthogonal map: 27% of float16 rows. A score
    is a product with a row, and what the codes leave out of it is a fraction of what unrelated rows
    have. No kernel is in them: they serve scores of any method, kernel and damping.

    The index is kept in the store beside the features, one for each train split and epoch, and is found
    there by scores of these. A build that is refused leaves the index that is there. Masked rows are in
    it, and in no answer. A call that was stopped goes on where it was. The train rows are read once for
    the codes, and once for the exact lists of ``checked`` targets, by which the recall is measured that
    answers with such scores tell: it is kept for each method, kernel and damping, and measured only of
    scores with all train rows.

    After an append, the same call adds the new rows, by the directions of before. Once there are more
    than twice the rows that these were of, or the recall of the same kind of scores fell by more than
    0.1, the index is built anew.

    Parameters
    ----------
    scores : Scores, shape (m, n)
        Scores of targets of a store with its train rows, from :func:`trak_scores`,
        :func:`influence_scores`, :func:`grad_dot_scores` or the like.
    k : int
        Entries of the lists that recall is measured on, n at most (all of fewer than 10 rows). A list
        of so many that all rows are candidates replaces no recall that was measured with fewer.
    checked : int
        Targets, evenly spaced, that recall is measured on; none when 0, which leaves what was measured
        on the same codes.
    seed : int
        Seed of the signs by which rows are mixed.
    anew : bool
        Build an index by the rows as they are now, whatever is stored: where the recall is low, say. It
        also replaces an index of more rows than the store
        has now, which is refused otherwise.
    memory_limit : int or str, optional
        Bytes of one process; a quarter of the available memory when None.

    Returns
    -------
    TrainIndex
        Open, to be given to :func:`approximate_top_k`.

    Raises
    ------
    TrakStoreError
        Train rows that are in no store, or a count below its least.
    SpecMismatchError
        When the stored index has rows that were appended after the store was opened.
    LocationError
        When another process builds the same index, or the store cannot be written.
    MemoryLimitError
        When the codes, or a tile, do not fit.

    Examples
    --------
    >>> index = ts.build_index(ts.grad_dot_scores(store, epochs=15), k=3, checked=4)
    >>> index.rows, index.recalls[-1].checked
    (24, 4)
    """
    need_scores(scores)
    need_train_rows(scores)
    need_compiler()
    k = as_whole(k, "k", 1, max(_ENTRIES, scores.shape[1]))
    checked, seed = as_whole(checked, "checked", 0), as_whole(seed, "seed", 0, 2**63 - 1)
    anew = as_flag(anew, "anew")
    every, limit = indexed_rows(scores), memory_budget(memory_limit)
    if checked:
        few = scores.isel(target=slice(0, checked))
        plan_top_k(few.sizes, min(k, scores.shape[1]), None, memory_limit)
    with ExitStack() as claims:
        # In one order for all builds: of two that meet, one goes on.
        for rows in sorted(every, key=lambda one: one.path):
            claims.enter_context(claimed(rows.location, rows.path, "index"))
        begun = _stored_or_new(every, seed, limit, anew=anew)
        index = _coded(begun, limit)
        made = measured(index, scores, k, checked, memory_limit)
        if has_fallen(begun[0].recalls_before, made, scores):
            begun = _stored_or_new(every, seed, limit, anew=True)
            index = _coded(begun, limit)
            made = measured(index, scores, k, checked, memory_limit)
        first, *others = index.parts
        index = TrainIndex((replace(first, document=made), *others))
        for one, part in zip(begun, index.parts, strict=True):
            _publish(one, part.document)
    drop_older_indexes(every[0].location, every[0].split)
    return index


@dataclass(frozen=True)
class _Begun:
    """An index of one epoch whose directions are known.

    Attributes
    ----------
    rows : IndexedRows
    document : IndexDocument
    arrays : list of SavedArray
    pending : bytes or None
        Document that is there until all rows have codes; None where they have.
    recalls_before : tuple of Recall
        Recalls of the index that rows are added to, by which its directions are judged.
    """

    rows: IndexedRows
    document: IndexDocument
    arrays: list[SavedArray]
    pending: bytes | None
    recalls_before: tuple[Recall, ...] = ()


_Known: TypeAlias = tuple[IndexDocument, dict[str, SavedArray], bool]


def _stored_or_new(
    every: Sequence[IndexedRows], seed: int, limit: int, *, anew: bool
) -> list[_Begun]:
    """Begin indexes, or go on with the stored ones, which are touched once all has been checked."""
    plans = [_plan(rows, seed, anew=anew) for rows in every]
    for plan in plans:
        _workers(plan.rows, plan.arrays, limit)
    need_index_memory([(plan.document, plan.arrays) for plan in plans], limit)
    return [plan.begun() for plan in plans]


@dataclass(frozen=True)
class _Plan:
    """Plan for the index of one epoch, of which nothing has been touched.

    Attributes
    ----------
    rows : IndexedRows
    document : IndexDocument
    arrays : list of SavedArray
    known : tuple, optional
        The stored index, whose codes stay; None where all rows are coded.
    """

    rows: IndexedRows
    document: IndexDocument
    arrays: list[SavedArray]
    known: _Known | None

    def begun(self) -> _Begun:
        """Store what all codes need, and the document of an index that is being built."""
        rows, place, path = self.rows, self.rows.location, self.rows.path
        if self.known is None:
            directions = Coder.directions_of(_spread_rows(rows.column), self.document.seed)
            pending = begin_table(place, path, self.arrays, self.document.token)
            self.arrays[0].write(place, path, directions)
            return _Begun(rows, self.document, self.arrays, pending)
        old, _, is_whole = self.known
        if is_whole and old.rows == self.document.rows:
            return _Begun(rows, self.document, self.arrays, None)
        # What was measured before rows were added is kept until they have codes, for a call that goes
        # on with this one.
        token = replace(self.document, recalls=old.recalls).token
        pending = begin_longer_table(place, path, self.arrays, token)
        return _Begun(rows, self.document, self.arrays, pending, old.recalls)


def _plan(rows: IndexedRows, seed: int, *, anew: bool) -> _Plan:
    wanted = rows.document(seed)
    wanted = replace(
        wanted,
        blocks=rows.blocks_digest(wanted.rows),
        whole_blocks=rows.blocks_digest(wanted.rows, whole=True),
    )
    known = None if anew else _known(rows.location, rows.path)
    if known is not None:
        rows.refuse_longer(known[0])
    if known is None or not _goes_on(rows, known, wanted):
        return _Plan(rows, wanted, wanted.arrays(_chunk_rows(rows)), None)
    old, arrays, is_whole = known
    kept = replace(wanted, first_rows=old.first_rows)
    if is_whole and old.rows == kept.rows:
        # No row is coded: what was measured on these codes stays.
        kept = replace(kept, recalls=old.recalls)
        return _Plan(rows, kept, [arrays[one.name] for one in kept.arrays(1)], known)
    longer = [replace(one, tails=None) for one in kept.arrays(arrays["level"].chunks[0])]
    return _Plan(rows, kept, longer, known)


def _coded(begun: Sequence[_Begun], limit: int) -> TrainIndex:
    """Write the codes that lack, and read all."""
    coded = sum(one.document.rows for one in begun if one.pending is not None)
    with ProgressLine("index", coded, unit="rows", show=on_terminal() and coded > 0) as progress:
        for one in begun:
            if one.pending is not None:
                _encode(one, limit, progress)
    return TrainIndex(tuple(EpochIndex.read(one.rows, one.document, one.arrays) for one in begun))


def _publish(begun: _Begun, document: IndexDocument) -> None:
    place, path, arrays = begun.rows.location, begun.rows.path, begun.arrays
    pending = begun.pending or begin_longer_table(place, path, arrays, document.token)
    publish_table(place, path, arrays, document.values, instead_of=pending)


def _chunk_rows(rows: IndexedRows) -> int:
    spec: Any = rows.column.committed_by
    return chunk_rows_of(rows.column.shape[1], spec.block_rows)


def _goes_on(rows: IndexedRows, known: _Known, wanted: IndexDocument) -> bool:
    """Tell whether the codes of a stored index, or of one that was begun, stay."""
    old, arrays, _ = known
    # Chunks of an index that was first of few rows are too small for many.
    small = arrays["level"].chunks[0] < min(_chunk_rows(rows), wanted.rows)
    return not (small and old.rows < wanted.rows) and rows.grows_from(old, wanted)


def _known(place: Location, path: str) -> _Known | None:
    """Read the stored index, or what was begun; a damaged one counts as none: it is built again."""
    known = known_index(place, path)
    if known is None or (known[2] and any(check_table(place, path, check_index))):
        return None
    try:
        known[1]["direction"].read(place, path)
    except DamagedError:
        return None
    return known


def _encode(begun: _Begun, limit: int, progress: ProgressLine) -> None:
    """Write the codes of all rows that have none yet."""
    rows, arrays = begun.rows, begun.arrays
    directions = arrays[0].open(rows.location, rows.path)[...]
    coder, step = Coder.of(directions, begun.document.seed), arrays[1].chunks[0]
    one = _EncodePass(step, rows.column, coder, tile_rows(rows.column), rows.path, tuple(arrays))
    one.run(begun.document.rows, workers=_workers(rows, arrays, limit), finished=progress.advance)


def _workers(rows: IndexedRows, arrays: Sequence[SavedArray], limit: int) -> int:
    """Return the number of chunks that are coded at once."""
    column, chunk = rows.column, arrays[1].chunks
    count, dim = column.shape
    # A tile as stored and as float32, and the codes of a chunk, twice; once, the directions.
    tile = min(tile_rows(column), count) * dim * (column.form.values.itemsize + 8)
    each, fixed = tile + 2 * chunk[0] * (chunk[1] + dim // 16 + 16), 8 * arrays[0].form.size
    return fitting_slots(fixed, each, limit, f"an index of rows of {dim}")


def _spread_rows(column: StoredColumn) -> F32:
    """Read some rows of a column, in places that are evenly spaced."""
    rows = column.shape[0]
    starts = np.unique(np.linspace(0, max(0, rows - _PLACE_ROWS), _PLACES).astype(int))
    some = [column.read(start, min(start + _PLACE_ROWS, rows)) for start in starts.tolist()]
    wide = np.concatenate(some).astype(np.float32)
    # Rows that were bad when they were written are NaN.
    wide[~np.isfinite(wide).all(axis=1)] = 0
    return wide


@dataclass(frozen=True, eq=False)
class _EncodePass(Pass[None, None]):
    """A pass that writes the codes of one epoch's rows, a chunk at a time."""

    column: StoredColumn
    coder: Coder
    tile_rows: int
    path: str
    arrays: tuple[SavedArray, ...]
    merge = staticmethod(nothing)

    def start(self) -> None:
        return

    def tiles(self, start: int, stop: int) -> Tiles:
        """Return the chunks that have no codes, or not of all their rows."""
        return [one for one in super().tiles(start, stop) if not self._is_done(*one)]

    def _is_done(self, low: int, high: int) -> bool:
        # The steps are written last. Where rows were appended, the chunk that was the last one has fill
        # values, NaN, in their places.
        try:
            *_, steps = (
                array.open(self.column.location, self.path)[low:high] for array in self.arrays[1:]
            )
            return bool(np.isfinite(steps).all())
        except DamagedError:
            return False

    def visit(self, state: None, low: int, high: int) -> None:  # noqa: ARG002
        parts = zip(*self._codes(low, high), strict=True)
        for array, one in zip(self.arrays[1:], parts, strict=True):
            first = (low, 0)[: len(array.shape)]
            array.write_unflushed(self.column.location, self.path, np.concatenate(one), first)

    def _codes(self, low: int, high: int) -> Iterator[tuple[NDArray[Any], ...]]:
        """Yield levels, shares, checksums and steps of a chunk's rows, a tile at a time."""
        for start, stop in ranges(high - low, self.tile_rows):
            place = low + start, low + stop
            stored = replace(self.column, scale=None).read(*place)
            checksums = row_checksums(stored)
            rows = stored if self.column.scale is None else self.column.read(*place)
            levels, shares, steps = self.coder.codes(rows)
            yield levels, shares, checksums, steps

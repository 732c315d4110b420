"""Building an index: codes of a store's train rows in a kernel's metric, block by block."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import DamagedError, TrakStoreError
from trakstore.passes.memory import fitting_slots, memory_budget
from trakstore.passes.one_pass import Pass, Tiles, nothing
from trakstore.passes.scheduler import tile_rows
from trakstore.planning import ranges
from trakstore.progress import ProgressLine, on_terminal
from trakstore.quantities import as_whole
from trakstore.scores.factored import Scores, need_scores
from trakstore.scores.index_recall import has_fallen, measured
from trakstore.scores.index_rows import IndexedRows
from trakstore.scores.parts import F32
from trakstore.scores.sign_codes import Turn, need_compiler, one_torch_thread
from trakstore.scores.top_k import plan_top_k
from trakstore.scores.train_index import TrainIndex, need_index_memory
from trakstore.storage.backends.location import Location
from trakstore.storage.claims import claimed
from trakstore.storage.row_reads import row_checksums
from trakstore.storage.stored import StoredColumn
from trakstore.storage.tables.index_documents import (
    IndexDocument,
    Recall,
    check_index,
    chunk_rows_of,
    known_index,
)
from trakstore.storage.tables.saved_arrays import SavedArray
from trakstore.storage.tables.saved_table import (
    begin_longer_table,
    begin_table,
    check_table,
    publish_table,
)

# Values of rows from which on torch, which takes seconds to import, multiplies integers.
_INTEGER_VALUES = 2**26
# Places in which rows are looked at before all are multiplied so, and rows of each: at most that many
# chunks are read twice.
_PLACES, _PLACE_ROWS = 16, 64
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

    A score is one product of two rows that are whitened alike,

    .. math:: t (K + \lambda I)^{-1} \varphi^\top = x\,y^\top, \qquad
              y = \varphi\,S^{-\top} R, \qquad S S^\top = K + \lambda I,

    with a random rotation R. Of y the index keeps the signs, a bit a direction: a 16th of float16
    rows, and little more of noise than unrelated rows have. Without a kernel, S is the unit matrix.

    The index is kept in the store beside the features, one for each train split and kernel, and is
    found there by scores of the same split, epochs, kernel and damping. A build that is refused leaves
    the index that is there. Masked rows are in it, and in no answer. A call that was stopped goes on
    where it was. The train rows are read once for the codes, and once for the exact lists of
    ``checked`` targets, by which the recall is measured that answers with such scores tell: it is kept
    for each method, and measured only of scores with all train rows.

    After an append, the same call adds the new rows, by the S of before. New rows may vary in other
    directions, of which that S knows nothing: once there are more than twice the rows that S was of,
    or the recall of the same kind of scores fell by more than 0.1, the index is built anew.

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
        Seed of the rotations.
    anew : bool
        Build an index with S of the rows as they are now, whatever is stored: after many samples were
        masked, say, or where the recall is low. It also replaces an index of more rows than the store
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
        Train rows that are in no store, a kernel that no matrix holds, or a count below its least.
    SpecMismatchError
        When the stored index has rows that were appended after the store was opened.
    LocationError
        When another process builds the same index, or the store cannot be written.
    MemoryLimitError
        When the codes, or a tile, do not fit.

    References
    ----------
    Gao and Long: "RaBitQ: Quantizing High-Dimensional Vectors with a Theoretical Error Bound for
    Approximate Nearest Neighbor Search", SIGMOD 2024.

    Examples
    --------
    >>> index = ts.build_index(ts.grad_dot_scores(store, epochs=15), k=3, checked=4)
    >>> index.document.rows, index.document.recalls[0].checked
    (24, 4)
    """
    need_scores(scores)
    need_compiler()
    k = as_whole(k, "k", 1, max(_ENTRIES, scores.shape[1]))
    checked, seed = as_whole(checked, "checked", 0), as_whole(seed, "seed", 0)
    if not isinstance(anew, bool):
        raise TrakStoreError(f"anew must be True or False, got {anew!r}")
    rows, limit = IndexedRows.of(scores), memory_budget(memory_limit)
    if checked:
        few = scores.isel(target=slice(0, checked))
        plan_top_k(few.sizes, min(k, scores.shape[1]), None, memory_limit)
    with claimed(rows.location, rows.path, "index"):
        begun = _stored_or_new(rows, seed, limit, anew=anew)
        index = _coded(rows, begun, limit)
        made = measured(index, scores, k, checked, memory_limit)
        if has_fallen(begun.recalls_before, made, scores):
            begun = _new(rows, _wanted(rows, seed), limit)
            index = _coded(rows, begun, limit)
            made = measured(index, scores, k, checked, memory_limit)
        pending = begun.pending or begin_longer_table(
            rows.location, rows.path, begun.arrays, begun.document.token
        )
        publish_table(rows.location, rows.path, begun.arrays, made.values, instead_of=pending)
    return replace(index, document=made)


@dataclass(frozen=True)
class _Begun:
    """An index whose turns are stored.

    Attributes
    ----------
    document : IndexDocument
        Its λ are those of the turns.
    arrays : list of SavedArray
    pending : bytes or None
        Document that is there until all rows have codes; None where they have.
    recalls_before : tuple of Recall
        Recalls of the index that rows are added to, by which its turns are judged.
    """

    document: IndexDocument
    arrays: list[SavedArray]
    pending: bytes | None
    recalls_before: tuple[Recall, ...] = ()


def _wanted(rows: IndexedRows, seed: int) -> IndexDocument:
    """Return the document of an index whose turns are of the rows as they are now."""
    wanted = rows.document(seed)
    return replace(
        wanted,
        blocks=rows.blocks_digest(wanted.rows),
        whole_blocks=rows.blocks_digest(wanted.rows, whole=True),
    )


def _stored_or_new(rows: IndexedRows, seed: int, limit: int, *, anew: bool) -> _Begun:
    """Begin an index, or go on with the stored one, which is touched once all has been checked."""
    place, path, wanted = rows.location, rows.path, _wanted(rows, seed)
    stored = None if anew else _stored(place, path)
    if stored is not None:
        rows.refuse_longer(stored[0])
    if stored is None or not _goes_on(rows, stored, wanted):
        return _new(rows, wanted, limit)
    old, known, is_whole = stored
    # The turns stay, so that a λ that drifts a little with each append is told from theirs.
    kept = replace(wanted, dampings=old.dampings, turned_rows=old.turned_rows or old.rows)
    arrays = [replace(one, tails=None) for one in kept.arrays(known["signs"].chunks[1])]
    if is_whole and old.rows == kept.rows:
        # No row is coded: what was measured on these codes stays.
        kept = replace(kept, recalls=old.recalls)
        return _Begun(kept, [known[one.name] for one in arrays], None)
    _need_memory(rows, kept, arrays, limit)
    # What was measured before the rows were added is kept until they have codes, for a call that goes
    # on with this one.
    token = replace(kept, recalls=old.recalls).token
    return _Begun(kept, arrays, begin_longer_table(place, path, arrays, token), old.recalls)


def _new(rows: IndexedRows, wanted: IndexDocument, limit: int) -> _Begun:
    """Begin an index without what is stored, once all has been checked."""
    place, path = rows.location, rows.path
    arrays = wanted.arrays(_chunk_rows(rows))
    _need_memory(rows, wanted, arrays, limit)
    turns = list(rows.turns(wanted.seed))
    pending = begin_table(place, path, arrays, wanted.token)
    for at, turn in enumerate(turns):
        arrays[0].write(place, path, turn[None], (at, 0, 0))
    return _Begun(wanted, arrays, pending)


def _coded(rows: IndexedRows, begun: _Begun, limit: int) -> TrainIndex:
    """Write the codes of an index that lack, and read it."""
    if begun.pending is not None:
        _encode(rows, begun.document, begun.arrays, limit)
    return TrainIndex.read(rows, begun.document, begun.arrays, limit)


def _chunk_rows(rows: IndexedRows) -> int:
    spec: Any = rows.columns[0].committed_by
    return chunk_rows_of(rows.columns[0].shape[1], spec.block_rows)


def _goes_on(rows: IndexedRows, stored: _Stored, wanted: IndexDocument) -> bool:
    """Tell whether the codes of a stored index, or of one that was begun, stay."""
    old, known, _ = stored
    # Chunks of an index that was first of few rows are too small for many.
    small = known["signs"].chunks[1] < min(_chunk_rows(rows), wanted.rows)
    return not (small and old.rows < wanted.rows) and rows.grows_from(old, wanted)


def _need_memory(
    rows: IndexedRows, wanted: IndexDocument, arrays: Sequence[SavedArray], limit: int
) -> None:
    """Raise a :class:`MemoryLimitError` where building, or opening the index then, does not fit."""
    _workers(rows, wanted, arrays, limit)
    need_index_memory(rows.path, wanted.rows, arrays, limit)


_Stored: TypeAlias = tuple[IndexDocument, dict[str, SavedArray], bool]


def _stored(place: Location, path: str) -> _Stored | None:
    """Read the stored index, or what was begun; a damaged one counts as none: it is built again."""
    found = known_index(place, path)
    if found is None or (found[2] and any(check_table(place, path, check_index))):
        return None
    try:
        found[1]["turn"].read(place, path)
    except DamagedError:
        return None
    return found


def _encode(
    rows: IndexedRows, wanted: IndexDocument, arrays: Sequence[SavedArray], limit: int
) -> None:
    """Write the codes of all rows that have none yet."""
    count, workers = len(rows.columns), _workers(rows, wanted, arrays, limit)
    step, tile = arrays[1].chunks[1], tile_rows(rows.columns[0])
    integers = _takes_integers(math.prod(rows.columns[0].shape))
    with (
        ProgressLine("index", count * wanted.rows, unit="rows", show=on_terminal()) as progress,
        # Each task limits its own thread: this brings back what threads that are made later start with.
        one_torch_thread() if integers else nullcontext(),
    ):
        for at, column in enumerate(rows.columns):
            turn = arrays[0].open(rows.location, rows.path)[at].astype(np.float64)
            # x = L (R Sᵀ)ᵀ, and y = φ (R Sᵀ)⁻¹: their product is L φᵀ, whatever the matrix is.
            matrix = np.linalg.inv(turn).astype(np.float32)
            coder = Turn.of(matrix, integers=False)
            if integers:
                coder = coder.in_integers(_spread_rows(column))
            one = _EncodePass(step, column, coder, at, tile, rows.path, tuple(arrays))
            one.run(wanted.rows, workers=workers, finished=progress.advance)


def _workers(
    rows: IndexedRows, wanted: IndexDocument, arrays: Sequence[SavedArray], limit: int
) -> int:
    """Return the number of chunks that are coded at once."""
    dim, step, tile = wanted.dim, arrays[1].chunks[1], tile_rows(rows.columns[0])
    # A tile as stored, as float32 and in 8 bits, turned, and the signs of a chunk; once, the turn, its
    # inverse in float64 and the copies on the way there.
    item = rows.columns[0].form.values.itemsize
    each = min(tile, wanted.rows) * dim * (item + 14) + min(step, wanted.rows) * (dim // 8 + 16)
    return fitting_slots(36 * dim * dim, each, limit, f"an index of rows of {dim}")


def _spread_rows(column: StoredColumn) -> F32:
    """Read some rows of a column, in places that are evenly spaced: rows may be sorted by source."""
    rows = column.shape[0]
    starts = np.unique(np.linspace(0, max(0, rows - _PLACE_ROWS), _PLACES).astype(int))
    some = [column.read(start, min(start + _PLACE_ROWS, rows)) for start in starts.tolist()]
    return _finite(np.concatenate(some))


def _takes_integers(values: int) -> bool:
    return values >= _INTEGER_VALUES and _has_integer_products()


@cache
def _has_integer_products() -> bool:
    """Tell whether torch multiplies integers of 8 bits on this machine, and as such."""
    import torch

    return hasattr(torch, "_int_mm") and torch.backends.mkldnn.is_available()


@dataclass(frozen=True, eq=False)
class _EncodePass(Pass[None, None]):
    """A pass that writes the codes of one epoch's rows, a chunk at a time."""

    column: StoredColumn
    turn: Turn
    at: int
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
        # The lengths are written last. Where rows were appended, the chunk that was the last one has
        # fill values, NaN, in their places.
        try:
            *_, lengths = (
                array.open(self.column.location, self.path)[self.at, low:high]
                for array in self.arrays[1:]
            )
            return bool(np.isfinite(lengths).all())
        except DamagedError:
            return False

    def visit(self, state: None, low: int, high: int) -> None:  # noqa: ARG002
        signs, checksums, lengths = zip(*self._codes(low, high), strict=True)
        values = [np.concatenate(one)[None] for one in (signs, checksums, lengths)]
        for array, one in zip(self.arrays[1:], values, strict=True):
            first = (self.at, low, 0)[: one.ndim]
            array.write(self.column.location, self.path, one, first)

    def _codes(
        self, low: int, high: int
    ) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint32], F32]]:
        """Yield the codes of a chunk's rows, a tile at a time."""
        for start, stop in ranges(high - low, self.tile_rows):
            place = low + start, low + stop
            stored = replace(self.column, scale=None).read(*place)
            checksums = row_checksums(stored)
            rows = stored if self.column.scale is None else self.column.read(*place)
            signs, lengths = self.turn.codes(_finite(rows))
            yield signs, checksums, lengths


def _finite(rows: NDArray[Any]) -> F32:
    """Return rows as float32, with zeros for those that were bad when they were written: all NaN."""
    wide = _widened(rows)
    with np.errstate(over="ignore", invalid="ignore"):
        # A finite sum says so of all its terms, and nearly all rows have one: the others are looked at.
        others = np.flatnonzero(~np.isfinite(np.add.reduce(wide, axis=1)))
    wide[others[~np.isfinite(wide[others]).all(axis=1)]] = 0
    return wide


def _widened(rows: NDArray[Any]) -> F32:
    from trakstore.passes.half_precision import has_instructions, widened

    if rows.dtype == np.float16 and has_instructions():
        return widened(rows)
    return np.array(rows, dtype=np.float32)

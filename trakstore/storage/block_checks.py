"""Checks of a committed block: its bytes against its marker, its numbers against its norms."""

from __future__ import annotations

import errno
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import DamagedError, LocationError
from trakstore.planning import counted
from trakstore.spec import SplitSpec
from trakstore.storage import layout
from trakstore.storage.arrays import block_keys, column_form, marker_entries
from trakstore.storage.backends.chunks import TAIL, intact
from trakstore.storage.columns import first_few
from trakstore.storage.dropped_rows import dropped_columns
from trakstore.storage.eight_bits import MOST_ERROR, dequantised, rounding_bound
from trakstore.storage.layout import Epoch
from trakstore.storage.markers import marker_of
from trakstore.storage.skipped import stated_reasons, unlike_norms
from trakstore.storage.split import Split

FindingKind: TypeAlias = Literal[
    "missing", "truncated", "damaged", "foreign", "marker", "document", "non-finite", "norm", "ids"
]

_Wrong: TypeAlias = tuple[FindingKind, str, str]  # what kind, the key in the split, a message

# Most difference between the norm of a stored row and the stored norm. The latter is rounded itself,
# and was taken before the row was cast or rounded, which may change it by 1%.
EXACT, NARROWED = 1e-5, 0.01 + 1e-6


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a store.

    Attributes
    ----------
    kind : str
        ``missing``, ``truncated`` and ``damaged`` chunks; ``foreign`` files or chunks, which were
        not written for this place; a damaged or stale ``marker``; a metadata ``document`` that is
        gone, damaged or disagrees; rows that are ``non-finite``; rows whose ``norm`` disagrees;
        ``ids`` that several rows of a split have.
    key : str
        The file or object.
    message : str
        Words for what is wrong with it.
    epoch, split, block
        Names of what it is in, as far as it is in one.
    repaired : bool
        True if its block was marked as missing, or its document written again.
    """

    kind: FindingKind
    key: str
    message: str
    epoch: Epoch | None = None
    split: str | None = None
    block: int | None = None
    repaired: bool = False

    def __str__(self) -> str:
        return f"{self.kind}: {self.key} {self.message}{' (repaired)' if self.repaired else ''}"


def check_block(split: Split, block: int) -> list[Finding]:
    """Read a committed block, one chunk at a time; return what is wrong with it."""
    spec, key = split.spec, layout.marker_key(split.path, block)
    try:
        marker = split.location.get(key, TAIL * (marker_entries(spec) + 1))
    except DamagedError as error:
        return [Finding("marker", key, _words(error, key), split.epoch, split.name, block)]
    if marker is None:  # dropped since it was listed
        return []
    wrong = _wrong_marker(spec, block, marker)
    wrong_parts: list[_Wrong] = [] if wrong is None else [wrong]
    rows = _Rows(spec, block)
    gone = dropped_columns(spec) if split.dropped else ()
    for i, key in enumerate(block_keys(spec, block)):
        # Chunks that were deleted on purpose are not missed. Without them, a row cannot be compared
        # with its norm.
        if key.partition("/")[0] in gone:
            continue
        tail = None if wrong else marker[(2 + i) * TAIL : (3 + i) * TAIL]
        bad = _check_chunk(split, key, tail, rows)
        wrong_parts += [] if bad is None else [bad]
    # Sound chunks that the marker does not commit may still hold every row that counts.
    if {kind for kind, *_ in wrong_parts} == {"foreign"} and _has_old_rows(split, block):
        wrong_parts = []
    wrong_parts += _wrong_note(split, block, rows.says_why)
    wrong_parts += rows.wrong(_reasons(split, block))
    return [
        Finding(kind, layout.child(split.path, key), message, split.epoch, split.name, block)
        for kind, key, message in wrong_parts
    ]


def _check_chunk(split: Split, key: str, tail: bytes | None, rows: _Rows) -> _Wrong | None:
    """Read a chunk; return what is wrong with it, or take its numbers into ``rows``."""
    path, form = layout.child(split.path, key), column_form(split.spec, key.partition("/")[0])
    try:
        value = split.location.get(path, form.most)
        wrong = _wrong_chunk(split.spec, key, value, tail)
        if wrong is None and value is not None:
            rows.add(key, value)
    except DamagedError as error:
        # Errors of reading name the whole key, and those of decoding the key within the split.
        return "damaged", key, _words(error, path).removeprefix(f"{key} ")
    except LocationError as error:
        # A failing network is no damage: the check stops without a report. A bad sector is damage.
        if getattr(error.__cause__, "errno", None) != errno.EIO:
            raise
        return "damaged", key, "cannot be read: input/output error"
    return wrong


def _words(error: DamagedError, key: str) -> str:
    """Return an error's words on a key, without the key that they may begin with."""
    return str(error).removeprefix(f"{key} ")


def _reasons(split: Split, block: int) -> NDArray[np.uint8] | None:
    """Read why rows of a block are bad; None where the store does not say that any are."""
    try:
        value = split.location.get(
            layout.chunk_key(layout.child(split.path, layout.SKIPPED), (block,))
        )
    except DamagedError:  # the walk says so of its key
        return None
    if value is None or not intact(value) or len(value) != split.spec.block_rows + TAIL:
        return None
    start, stop = split.spec.block_range(block)
    return np.frombuffer(value, np.uint8, count=stop - start)


def _wrong_note(split: Split, block: int, says_why: bool) -> Iterator[_Wrong]:
    """Check the key that says that a block has bad rows, which must exist if there are any."""
    note, chunk = layout.skipped_key("", block), layout.chunk_key(layout.SKIPPED, (block,))
    try:
        keys = [layout.child(split.path, key) for key in (note, chunk)]
        noted, end = split.location.get_tails(keys, TAIL + 1)
    except DamagedError as error:
        yield "damaged", note, f"or {chunk} is damaged ({error})"
        return
    if noted is None and says_why:
        yield "missing", note, "is missing though rows of its block are bad"
    elif noted is not None and end is None:
        yield "missing", chunk, "is missing though rows of its block are bad"
    elif noted is not None and end is not None and noted != end[-TAIL:]:
        yield "foreign", note, "is not of the chunk that says why rows are bad"


def _has_old_rows(split: Split, block: int) -> bool:
    """Tell whether the marker commits a last, short block, apart from rows after the split's last.

    A stopped append leaves such a block: its chunks are stored again with more rows, the old ones
    unchanged.
    """
    start, stop = split.spec.block_range(block)
    if stop - start == split.spec.block_rows:
        return False
    gone = dropped_columns(split.spec) if split.dropped else ()
    try:
        marker_of(split.location, split.path, split.spec, block, fresh=True)
        for name in split.columns:
            if name not in gone:
                split.column(name).read(start, stop)
    except DamagedError:
        return False
    return True


def _wrong_marker(spec: SplitSpec, block: int, marker: bytes) -> _Wrong | None:
    key = layout.marker_key("", block)
    if len(marker) != TAIL * (marker_entries(spec) + 1) or not intact(marker):
        return "marker", key, "is damaged: its checksum or its length is wrong"
    # The order of the writer: rows, the split's nonce, then the tail of each chunk.
    rows, nonce, *tails = np.frombuffer(marker[:-TAIL], "<u4").tolist()
    start, stop = spec.block_range(block)
    if nonce in spec.nonces_before:
        what = "is of rows that were withdrawn, since a block of the split was wrong"
        return "marker", key, f"{what}: run the same featurize again"
    if nonce != spec.nonce:
        return "marker", key, f"is stale: it has nonce {nonce}, the split {spec.nonce}"
    # The last block may have more rows, if an append was stopped before they counted.
    if rows < stop - start or rows > (spec.block_rows if stop == spec.rows else stop - start):
        return "marker", key, f"says {rows} rows, the block has {stop - start}"
    if rows == stop - start and any(tails[len(block_keys(spec, block)) :]):
        return "marker", key, "has entries for chunks that the block does not have"
    return None


def _wrong_chunk(
    spec: SplitSpec, key: str, value: bytes | None, tail: bytes | None
) -> _Wrong | None:
    if value is None:
        return "missing", key, "is missing though its block was committed"
    form = column_form(spec, key.partition("/")[0])
    size = None if form.dtype == "str" or form.compressed else form.most
    if len(value) < (size or TAIL):
        return "truncated", key, f"has {len(value)} bytes of {size or 'at least 4'}"
    if not intact(value):
        return "damaged", key, "does not have the checksum or the length that it was written with"
    if tail not in (None, value[-TAIL:]):
        return "foreign", key, "is sound but is not the chunk that the block's marker commits"
    return None


class _Rows:
    """Numbers of a block, collected chunk by chunk: the row columns, and the rows' squared norms."""

    def __init__(self, spec: SplitSpec, block: int) -> None:
        self.spec = spec
        self.first, stop = spec.block_range(block)
        self.count = stop - self.first
        self.squares = np.zeros(self.count)
        self.narrow: dict[str, NDArray[Any]] = {}
        self.finite = {name: np.ones(self.count, dtype=bool) for name in dict(spec.widths)}
        self.awaited = sum(key.startswith(f"{layout.FEATURES}/") for key in block_keys(spec, block))

    def add(self, key: str, value: bytes) -> None:
        """Take in a sound chunk."""
        name, _, rest = key.partition("/")
        values = column_form(self.spec, name).decode(key, value)
        if name == layout.FEATURES:
            if values.dtype == np.int8 and layout.ROW_SCALE not in self.narrow:
                return  # the scale is damaged, which is reported: without it the rows cannot be checked
            self._add_squares(values, *layout.chunk_numbers(rest))
        elif name in self.finite:
            self._add_finite(name, values, layout.chunk_numbers(rest)[0])
        elif values.dtype.kind != "T":
            self.narrow[name] = values[: self.count]

    def _add_squares(self, values: NDArray[Any], down: int, across: int) -> None:
        height, width = self.spec.chunk_rows, self.spec.chunk_columns
        row = down * height - self.first
        rows, columns = min(height, self.count - row), min(width, self.spec.dim - across * width)
        tile = values[:rows, :columns]
        if tile.dtype == np.int8:
            tile = dequantised(tile, self.narrow[layout.ROW_SCALE][row : row + rows])
        wide = tile.astype(np.float32, copy=False)  # float16 is slow to sum
        self.squares[row : row + rows] += np.einsum("ij,ij->i", wide, wide, dtype=np.float64)
        self.awaited -= 1

    def _add_finite(self, name: str, values: NDArray[Any], down: int) -> None:
        row = down * self.spec.chunk_rows - self.first
        tile = values[: self.count - row]
        self.finite[name][row : row + len(tile)] = np.isfinite(tile).all(axis=1)

    @property
    def says_why(self) -> bool:
        """True if rows are NaN with a reason: they were written by a version that notes reasons."""
        return "norm" in self.narrow and bool(stated_reasons(self.narrow["norm"]).any())

    def wrong(self, reasons: NDArray[np.uint8] | None = None) -> Iterator[_Wrong]:
        """Yield rows that are not finite, and rows whose norm is not the stored one.

        Rows that were bad when they were written, with ``reasons`` for it, are left out.
        """
        if reasons is not None and "norm" in self.narrow:
            norms = self.narrow["norm"]
            unlike = unlike_norms(reasons, norms)
            if unlike.any():
                what = self._named(unlike, "is sound but does not say why rows are NaN")
                yield "foreign", layout.SKIPPED, what
            self._leave_out(np.isnan(norms))
        for name, whole in self.finite.items():
            if not whole.all():
                yield "non-finite", name, self._named(~whole, "has NaN or infinite values")
        for name, column in self.narrow.items():
            if column.dtype.kind == "f" and not np.isfinite(column).all():
                yield "non-finite", name, self._named(~np.isfinite(column), "is NaN or infinite")
        # If one chunk is missing, a row's sum of squares cannot be compared with its norm.
        if self.awaited:
            return
        finite = np.isfinite(self.squares)
        if not finite.all():
            yield "non-finite", layout.FEATURES, self._named(~finite, "has NaN or infinite values")
        if "norm" in self.narrow:
            off = finite & ~self._near(self.narrow["norm"].astype(np.float64))
            if off.any():
                yield "norm", "norm", self._named(off, "is not the norm of the stored features")

    def _leave_out(self, rows: NDArray[np.bool_]) -> None:
        """Treat some rows as finite ones of norm 0."""
        self.squares[rows] = 0
        for whole in self.finite.values():
            whole[rows] = True
        for name, column in self.narrow.items():
            if column.dtype.kind == "f":
                self.narrow[name] = np.where(rows, 0, column)

    def _near(self, norm: NDArray[np.float64]) -> NDArray[np.bool_]:
        exact = (
            dict(self.spec.columns)[layout.FEATURES] == "float32" and self.spec.keep_bits is None
        )
        relative = EXACT if exact else NARROWED
        absolute = math.sqrt(self.spec.dim) * float(np.finfo(np.float32).smallest_subnormal)
        allowed = relative * norm + absolute
        if layout.ROW_SCALE in self.narrow:
            # No more than the rounding to 8 bits can change these rows, and than the writer accepts.
            bound = rounding_bound(self.narrow[layout.ROW_SCALE], self.spec.dim)
            allowed = np.minimum(bound, MOST_ERROR * norm) + EXACT * norm + absolute
        difference = np.abs(np.sqrt(self.squares) - norm)
        return np.asarray((difference <= allowed) | ~np.isfinite(norm))

    def _named(self, bad: NDArray[np.bool_], what: str) -> str:
        rows = np.flatnonzero(bad) + self.first
        return f"{what} in {counted(len(rows), 'row')} ({first_few(rows)})"

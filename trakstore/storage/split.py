"""A split at an epoch, as a reader sees it: its columns, and which rows are there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from trakstore.errors import (
    DamagedError,
    IncompleteError,
    NotFoundError,
    TrakStoreError,
    did_you_mean,
    error_context,
)
from trakstore.quantities import as_flag
from trakstore.spec import SplitSpec
from trakstore.storage import layout
from trakstore.storage.arrays import column_dimensions, column_form, column_shape
from trakstore.storage.backends.location import Location
from trakstore.storage.dropped_rows import dropped_error
from trakstore.storage.group_documents import PLACE, attributes, group_document
from trakstore.storage.layout import Epoch
from trakstore.storage.stored import StoredColumn

_TASK_BYTES = 64_000_000  # bytes of a task's features, in float32


def split_document(path: str, spec: SplitSpec) -> bytes:
    """Return the document of the split at ``path``: its spec, and its place."""
    return group_document({**spec.to_dict(), PLACE: path})


def split_spec(document: bytes, path: str) -> SplitSpec:
    """Return the spec in the document of the split at ``path``.

    Raises
    ------
    DamagedError
        When it is damaged, or is another split's; in format 1 it does not say whose it is.
    """
    known = attributes(document, path)
    place = known.pop(PLACE, path)
    if place != path:
        raise DamagedError(f"{path} has the document of {place!r:.80}")
    with error_context(path):
        return SplitSpec.from_dict(known)


def blocks_among(names: Iterable[str]) -> list[int]:
    """Return the numbers of the blocks whose markers are among some names, ascending."""
    return sorted(block for name in names if (block := layout.marker_block(name)) is not None)


def written_blocks(location: Location, path: str) -> list[int]:
    """List the numbers of the blocks of the split at ``path`` that are committed, ascending."""
    return blocks_among(location.names(layout.written_path(path)))


def _no_rows() -> NDArray[np.int64]:
    return np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class SplitStatus:
    """Number of rows and blocks of a split that exist.

    Attributes
    ----------
    epoch, split
        Names of the split.
    rows, written_rows : int
        Rows that it is to have, and rows that are committed.
    blocks, written_blocks : int
        The same for blocks.
    missing : tuple of (start, stop)
        Row ranges that are not committed.
    dropped : bool
        True if the features were deleted on purpose, and their gram is kept.
    damaged_note : str
        Fault of the note that would say so, if it cannot be read; otherwise empty.
    """

    epoch: Epoch
    split: str
    rows: int
    written_rows: int
    blocks: int
    written_blocks: int
    missing: tuple[tuple[int, int], ...]
    dropped: bool = False
    damaged_note: str = ""

    @property
    def complete(self) -> bool:
        """True if every row is there."""
        return not self.missing


@dataclass(frozen=True)
class Split:
    """One split at one epoch, as it was when it was opened.

    Attributes
    ----------
    location : Location
        The store's place.
    epoch, name
        Names of the split.
    spec : SplitSpec
        Size, blocks, columns and origin.
    complete : bool
        True if all of its blocks were committed.
    masked : ndarray of int64
        Positions of the rows that are left out, ascending: masked rows, and rows that were bad when
        they were written.
    skipped : ndarray of int64
        Rows that were bad when they were written.
    own_masked : ndarray of int64, optional
        Rows that the store itself leaves out, if ``masked`` has more: see
        :func:`~trakstore.storage.sampled_rows.of_train`.
    dropped : bool
        True if the features were deleted on purpose, and their gram is kept.
    damaged_note : str
        Fault of the note that would say so, if it cannot be read; the split can then only be looked at
        and deleted.
    """

    location: Location
    epoch: Epoch
    name: str
    spec: SplitSpec
    complete: bool = field(default=False, compare=False)
    masked: NDArray[np.int64] = field(default_factory=_no_rows, compare=False, repr=False)
    skipped: NDArray[np.int64] = field(default_factory=_no_rows, compare=False, repr=False)
    own_masked: NDArray[np.int64] | None = field(default=None, compare=False, repr=False)
    dropped: bool = field(default=False, compare=False)
    damaged_note: str = field(default="", compare=False, repr=False)

    @property
    def state(self) -> str:
        """Equal for splits with the same rows, if the store leaves out the same ones."""
        # The nonce distinguishes splits of one name, the number of rows an append; masked rows are
        # hashed.
        masked = self.masked if self.own_masked is None else self.own_masked
        left_out = hashlib.sha256(masked.astype("<i8").tobytes()).hexdigest()
        return f"{self.spec.nonce:08x}-{self.rows}-{left_out}"

    @property
    def path(self) -> str:
        """Path of its group in the store."""
        return layout.split_path(self.epoch, self.name)

    @property
    def rows(self) -> int:
        """Number of samples."""
        return self.spec.rows

    @property
    def dim(self) -> int:
        """Number of features."""
        return self.spec.dim

    @property
    def row_bytes(self) -> int:
        """Bytes of a row's features, not compressed."""
        return self.dim * np.dtype(dict(self.spec.columns)[layout.FEATURES]).itemsize

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the stored columns."""
        return tuple(name for name, _ in self.spec.columns)

    def missing_blocks(self) -> list[int]:
        """List the numbers of the blocks that are not committed now, in order: one request."""
        written = set(written_blocks(self.location, self.path))
        return [block for block in range(self.spec.blocks) if block not in written]

    def status(self) -> SplitStatus:
        """List what is there now, and what is missing: one request."""
        total = self.spec.blocks
        # Markers after the last block belong to a stopped append, and do not count.
        written = [b for b in written_blocks(self.location, self.path) if b < total]
        # Missing rows lie between neighbouring written blocks, and between these and the ends.
        gaps = [(a + 1, b) for a, b in pairwise([-1, *written, total]) if b > a + 1]
        step = self.spec.block_rows
        missing = tuple((a * step, min(self.rows, b * step)) for a, b in gaps)
        absent = sum(stop - start for start, stop in missing)
        counts = (self.rows, self.rows - absent, total, len(written))
        return SplitStatus(self.epoch, self.name, *counts, missing, self.dropped, self.damaged_note)

    def require_complete(self) -> None:
        """Raise an :class:`IncompleteError` that names the missing rows, if any are missing now."""
        self._require_sound_note()
        if self.complete:
            return
        # A worker may have committed the rest since the split was opened.
        status = self.status()
        if status.complete:
            return
        shown = ", ".join(f"{start}-{stop - 1}" for start, stop in status.missing[:5])
        more = f" and {len(status.missing) - 5} more ranges" if len(status.missing) > 5 else ""
        raise IncompleteError(
            f"{self.name} at epoch {self.epoch} has {status.written_rows} of {self.rows} rows; "
            f"missing {shown}{more}; run the same featurize again to write them"
        )

    def require_rows(self) -> None:
        """Raise an :class:`IncompleteError` if the features were deleted, and their gram is kept."""
        self._require_sound_note()
        if self.dropped:
            raise dropped_error(self.path)

    def _require_sound_note(self) -> None:
        """Raise a :class:`DamagedError` if it is unknown whether the features were deleted."""
        if self.damaged_note:
            raise DamagedError(self.damaged_note)

    def column(self, name: str, *, allow_missing: bool = False) -> StoredColumn:
        """Return a stored column; with ``allow_missing``, unwritten rows come as its fill value.

        Features that are stored in 8 bits are read as float32, times the scale of each row.

        Raises
        ------
        NotFoundError
            When the split has no such column.
        """
        column = self.column_as_stored(name, allow_missing=allow_missing)
        if name == layout.FEATURES and layout.ROW_SCALE in self.columns:
            return replace(column, scale=self.column_as_stored(layout.ROW_SCALE))
        return column

    def column_as_stored(self, name: str, *, allow_missing: bool = False) -> StoredColumn:
        """Return a column like :meth:`column`, except that integers of 8 bits stay unscaled."""
        dtypes = dict(self.spec.columns)
        if name not in dtypes:
            raise NotFoundError(
                f"{self.name} at epoch {self.epoch} has no column {name!r}"
                f"{did_you_mean(name, dtypes)}"
            )
        allow_missing = as_flag(allow_missing, "allow_missing")
        missing = self.status().missing if allow_missing else ()
        token = f"{self.spec.nonce:08x}-{self.rows}-{len(missing)}"
        return self._stored(name, token, missing, self.spec)

    @property
    def reasons(self) -> StoredColumn:
        """Reasons why rows were bad when they were written, as bits; only blocks with such rows."""
        return self._stored(layout.SKIPPED, f"{self.spec.nonce:08x}-{self.rows}-skipped")

    @property
    def masked_before(self) -> StoredColumn:
        """Rows that are left out, in stores of format 1; only blocks with such rows."""
        return self._stored(layout.MASKED, layout.MASKED)

    def _stored(
        self,
        name: str,
        token: str,
        missing: tuple[tuple[int, int], ...] = (),
        committed_by: SplitSpec | None = None,
    ) -> StoredColumn:
        path, form = layout.child(self.path, name), column_form(self.spec, name)
        shape = column_shape(self.spec, name)[0]
        return StoredColumn(self.location, path, shape, form, token, missing, committed_by)

    def refuse_known_ids(self, ids: NDArray[Any]) -> None:
        """Raise a :class:`TrakStoreError` if a sample with one of these ids is there."""
        # Block by block, since the ids of a hundred million samples may not fit in memory.
        column = self.column(layout.SAMPLE_ID)
        for block in range(self.spec.blocks):
            start, stop = self.spec.block_range(block)
            known = column.read(start, stop)
            both = np.intersect1d(known, ids)
            if len(both):
                raise TrakStoreError(
                    f"{self.name} at epoch {self.epoch} has sample {both[0]} already"
                )

    @property
    def _task_rows(self) -> int:
        """Rows of a block of lazy columns, which is one task: Dask is slow with small ones."""
        numbers = max(self.spec.dim, *(width for _, width in self.spec.widths), 1)
        row_bytes = numbers * np.dtype(np.float32).itemsize
        return self.spec.block_rows * max(1, _TASK_BYTES // (row_bytes * self.spec.block_rows))

    def to_xarray(self, *, allow_missing: bool = False) -> xr.Dataset:
        """Return all columns, lazy, with dimensions ``sample`` and ``feature``; layers have their own.

        Blocks of all columns have the same rows: whole blocks of the store, of 64 MB of features or so.

        Raises
        ------
        IncompleteError
            When rows are missing and ``allow_missing`` is not set, or features were dropped.
        """
        allow_missing = as_flag(allow_missing, "allow_missing")
        self.require_rows()
        if not allow_missing:
            self.require_complete()
        columns: dict[str, Any] = {}
        for name in self.columns:
            column = self.column(name, allow_missing=allow_missing)
            columns[name] = (column_dimensions(name, column.ndim), column.to_dask(self._task_rows))
        return xr.Dataset(columns).set_coords(layout.SAMPLE_ID)

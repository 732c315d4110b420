"""A split at an epoch, as a reader sees it: its columns, and which rows are there."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import google_crc32c
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from trakstore.documents import parsed
from trakstore.errors import (
    DamagedError,
    IncompleteError,
    NotFoundError,
    TrakStoreError,
    did_you_mean,
    told_of,
)
from trakstore.spec import SplitSpec
from trakstore.storage import layout
from trakstore.storage.arrays import StoredColumn, column_dimensions, column_shape
from trakstore.storage.layout import Epoch
from trakstore.storage.locations import Location

__all__ = ["Split", "SplitStatus", "attributes", "group_document", "written_blocks"]


_CHECKSUM = "crc32c"


def group_document(attributes: Mapping[str, Any]) -> bytes:
    """The zarr document of a group: a pure function of its attributes, with their checksum."""
    checked = {**attributes, _CHECKSUM: _checksum(attributes)} if attributes else {}
    document = {"zarr_format": 3, "node_type": "group", "attributes": checked}
    return json.dumps(document, indent=1, sort_keys=True).encode()


def attributes(document: bytes, where: str, *, check: bool = True) -> dict[str, Any]:
    """The attributes in a group's document, without their checksum.

    Raises
    ------
    DamagedError
        When the document is not what was written.
    """
    with told_of(where):
        whole = parsed(document)
    found = whole.get("attributes") if isinstance(whole, dict) else None
    if not isinstance(found, dict):
        raise DamagedError(f"{where}: the metadata document is damaged (it has no attributes)")
    stored = found.pop(_CHECKSUM, None)
    if check and found and stored != _checksum(found):
        raise DamagedError(
            f"{where}: the metadata document is damaged (its attributes have checksum "
            f"{_checksum(found)}, it says {stored})"
        )
    return found


def _checksum(attributes: Mapping[str, Any]) -> int:
    text = json.dumps(attributes, sort_keys=True, separators=(",", ":"))
    return int(google_crc32c.value(text.encode()))


def written_blocks(location: Location, path: str) -> set[int]:
    """Numbers of the blocks of the split at ``path`` that are committed: one listing."""
    found = map(layout.marker_block, location.names(f"{path}/{layout.WRITTEN}"))
    return {block for block in found if block is not None}


@dataclass(frozen=True)
class SplitStatus:
    """How much of a split is there.

    Attributes
    ----------
    epoch, split
        Which one.
    rows, written_rows : int
        Rows that it is to have, and that are committed.
    blocks, written_blocks : int
        The same in blocks.
    missing : tuple of (start, stop)
        Row ranges that are not committed.
    """

    epoch: Epoch
    split: str
    rows: int
    written_rows: int
    blocks: int
    written_blocks: int
    missing: tuple[tuple[int, int], ...]

    @property
    def complete(self) -> bool:
        """Whether every row is there."""
        return not self.missing


@dataclass(frozen=True)
class Split:
    """One split at one epoch.

    Attributes
    ----------
    location : Location
        The store's place.
    epoch, name
        Which one.
    spec : SplitSpec
        Size, blocks, columns and origin.
    """

    location: Location
    epoch: Epoch
    name: str
    spec: SplitSpec

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
        """Numbers of the blocks that are not committed, in order."""
        written = written_blocks(self.location, self.path)
        return [block for block in range(self.spec.blocks) if block not in written]

    def status(self) -> SplitStatus:
        """What is there and what is missing: one listing."""
        total = self.spec.blocks
        written = sorted(b for b in written_blocks(self.location, self.path) if b < total)
        gaps = [(a + 1, b) for a, b in pairwise([-1, *written, total]) if b > a + 1]
        step = self.spec.block_rows
        missing = tuple((a * step, min(self.rows, b * step)) for a, b in gaps)
        absent = sum(stop - start for start, stop in missing)
        return SplitStatus(
            self.epoch, self.name, self.rows, self.rows - absent, total, len(written), missing
        )

    def require_complete(self) -> None:
        """Raise an :class:`IncompleteError` that names the rows that are missing."""
        status = self.status()
        if status.complete:
            return
        shown = ", ".join(f"{start}-{stop - 1}" for start, stop in status.missing[:5])
        more = f" and {len(status.missing) - 5} more ranges" if len(status.missing) > 5 else ""
        raise IncompleteError(
            f"{self.name} at epoch {self.epoch} has {status.written_rows} of {self.rows} rows; "
            f"missing {shown}{more}; run the same featurize again to write them"
        )

    def column(self, name: str, *, allow_missing: bool = False) -> StoredColumn:
        """A stored column; unwritten rows come as its fill value where ``allow_missing``.

        Raises
        ------
        NotFoundError
            When the split has no such column.
        """
        dtypes = dict(self.spec.columns)
        if name not in dtypes:
            raise NotFoundError(
                f"{self.name} at epoch {self.epoch} has no column {name!r}"
                f"{did_you_mean(name, dtypes)}"
            )
        dtype: Any = np.dtypes.StringDType() if dtypes[name] == "str" else np.dtype(dtypes[name])
        shape, chunks = column_shape(self.spec, name)
        missing = self.status().missing if allow_missing else ()
        return StoredColumn(
            self.location,
            f"{self.path}/{name}",
            shape,
            dtype,
            chunks,
            f"{self.spec.nonce:08x}-{self.rows}-{len(missing)}",
            missing,
            compressed=name == layout.FEATURES and self.spec.keep_bits is not None,
        )

    @property
    def masked(self) -> NDArray[np.int64]:
        """Positions of the rows that are left out, ascending; read from their own chunks only.

        Those that were masked since, and those that were bad when they were written.
        """
        path = f"{self.path}/{layout.MASKED}"
        column = StoredColumn(
            self.location,
            path,
            (self.rows,),
            np.dtype(bool),
            (self.spec.block_rows,),
            f"{self.spec.nonce:08x}-{self.rows}-masked",
        )
        found = [np.empty(0, dtype=np.int64)]
        for block in self._blocks_of(layout.MASKED):
            start, stop = self.spec.block_range(block)
            found.append(np.flatnonzero(column.read(start, stop)) + start)
        return np.union1d(np.concatenate(found), self.skipped)

    @property
    def skipped(self) -> NDArray[np.int64]:
        """Positions of the rows that were bad when they were written, ascending.

        Their norm is NaN, and their block has a chunk of :attr:`reasons`.
        """
        found = [np.empty(0, dtype=np.int64)]
        blocks = self._blocks_of(layout.SKIPPED)
        written = written_blocks(self.location, self.path) if blocks else set()
        for block in blocks:
            if block in written:
                start, stop = self.spec.block_range(block)
                found.append(
                    np.flatnonzero(np.isnan(self.column("norm").read(start, stop))) + start
                )
        return np.concatenate(found)

    @property
    def reasons(self) -> StoredColumn:
        """Why rows were bad when they were written, as bits; only where a block has such rows."""
        return StoredColumn(
            self.location,
            f"{self.path}/{layout.SKIPPED}",
            (self.rows,),
            np.dtype(np.uint8),
            (self.spec.block_rows,),
            f"{self.spec.nonce:08x}-{self.rows}-skipped",
        )

    def _blocks_of(self, name: str) -> list[int]:
        """Blocks that have a chunk of a column that is there only where it says something."""
        names = self.location.names(f"{self.path}/{name}/c")
        blocks = sorted(int(n) for n in names if n.isdecimal())
        return blocks[: bisect_left(blocks, self.spec.blocks)]

    def refuse_known_ids(self, ids: NDArray[Any]) -> None:
        """Raise a :class:`TrakStoreError` if a sample with one of these ids is there."""
        column = self.column(layout.SAMPLE_ID)
        for block in range(self.spec.blocks):
            start, stop = self.spec.block_range(block)
            known = column.read(start, stop)
            both = np.intersect1d(known, ids)
            if len(both):
                raise TrakStoreError(
                    f"{self.name} at epoch {self.epoch} has sample {both[0]} already"
                )

    def to_xarray(self, *, allow_missing: bool = False) -> xr.Dataset:
        """All columns, lazy, with dimensions ``sample`` and ``feature``; layers have their own.

        Raises
        ------
        IncompleteError
            When rows are missing and ``allow_missing`` is not set.
        """
        if not allow_missing:
            self.require_complete()
        columns: dict[str, Any] = {}
        for name in self.columns:
            column = self.column(name, allow_missing=allow_missing)
            columns[name] = (column_dimensions(name, column.ndim), column.to_dask())
        return xr.Dataset(columns).set_coords(layout.SAMPLE_ID)

"""Rows of the store behind scores, which an index is of."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from trakstore.errors import SpecMismatchError, TrakStoreError
from trakstore.passes.rows import Rows, TakenRows, UnmaskedRows
from trakstore.planning import ranges
from trakstore.scores.factored import Scores
from trakstore.storage import layout
from trakstore.storage.backends.chunks import TAIL
from trakstore.storage.backends.location import Location
from trakstore.storage.stored import StoredColumn
from trakstore.storage.tables.index_documents import IndexDocument

# The directions apart are those of the first rows: what is large in others is coded in larger steps.
# Where rows become more than so many times the first ones, all are coded again by new directions, which
# costs at most as many codes as there are rows, however often some are appended.
_MOST_GROWTH = 2
_RECORDS_AT_ONCE = 4096  # commit records whose ends are read at once


@dataclass(frozen=True, eq=False)
class IndexedRows:
    """The stored train rows of scores at one epoch.

    Attributes
    ----------
    column : StoredColumn, shape (n, k)
        All rows of the split, masked ones too.
    epoch : int or str
    """

    column: StoredColumn
    epoch: layout.Epoch

    @property
    def location(self) -> Location:
        return self.column.location

    @property
    def split(self) -> str:
        """Name of the train split."""
        return layout.last_part(layout.parent(self.column.path))

    @property
    def path(self) -> str:
        """Group of the index."""
        return layout.index_path(self.split, self.epoch)

    def document(self, seed: int = 0) -> IndexDocument:
        """Say what an index of these rows, as they are, is of."""
        spec: Any = self.column.committed_by
        rows, dim = self.column.shape
        return IndexDocument(str(self.epoch), spec.nonce, rows, dim, seed, first_rows=rows)

    def blocks_digest(self, rows: int, *, whole: bool = False) -> str:
        """Return the SHA-256 of the ends of the commit records of the first blocks.

        Parameters
        ----------
        rows : int
            Rows of these blocks.
        whole : bool
            Without a last block that the rows do not fill.
        """
        spec: Any = self.column.committed_by
        digest = hashlib.sha256()
        count = rows // spec.block_rows if whole else -(-rows // spec.block_rows)
        split = layout.parent(self.column.path)
        for start, stop in ranges(count, _RECORDS_AT_ONCE):
            keys = [layout.marker_key(split, block) for block in range(start, stop)]
            for end in self.location.get_tails(keys, TAIL):
                digest.update(end or b"")
        return digest.hexdigest()

    def grows_from(self, stored: IndexDocument, wanted: IndexDocument) -> bool:
        """Tell whether an index becomes the wanted one by adding the rows behind its last."""
        if (
            not _same_rows(stored, wanted)
            or stored.seed != wanted.seed
            or stored.rows > wanted.rows
            or wanted.rows > _MOST_GROWTH * stored.first_rows
        ):
            return False
        if stored.rows == wanted.rows:
            return stored.blocks == wanted.blocks
        return stored.whole_blocks == self.blocks_digest(stored.rows, whole=True)

    def refuse_longer(self, stored: IndexDocument) -> None:
        """Raise a :class:`SpecMismatchError` where an index has rows that were appended since."""
        wanted = self.document()
        if _same_rows(stored, wanted) and stored.rows > wanted.rows:
            raise SpecMismatchError(
                f"the index at {self.path} of {self.location} has {stored.rows} rows, these scores "
                f"have {wanted.rows}: rows were appended since the store was opened; open the store "
                f"again (if it still has no more, build the index with anew=True, or --anew)"
            )

    def refuse_other(self, stored: IndexDocument) -> None:
        """Raise a :class:`SpecMismatchError` where an index is of other rows."""
        wanted = self.document()
        self.refuse_longer(stored)
        where = f"the index at {self.path} of {self.location}"
        again = "; run `trakstore index`, or ts.build_index, again"
        if not _same_rows(stored, wanted):
            raise SpecMismatchError(f"{where} is of features that were replaced since{again}")
        if stored.rows != wanted.rows:
            raise SpecMismatchError(
                f"{where} has {stored.rows} rows of {wanted.rows}: rows were appended since{again}"
            )

    def missing(self) -> str:
        """Write the message for an index that is not there."""
        begun = self.location.get(layout.document_key(self.path)) is not None
        return (
            f"{self.location} has no index of {self.split!r} at epoch {self.epoch}"
            f"{' that was built to its end' * begun}: run `trakstore index`, or ts.build_index(scores)"
        )


def _same_rows(stored: IndexDocument, wanted: IndexDocument) -> bool:
    return (stored.epoch, stored.nonce, stored.dim) == (wanted.epoch, wanted.nonce, wanted.dim)


def indexed_rows(scores: Scores) -> tuple[IndexedRows, ...]:
    """Find the rows behind scores, at each epoch.

    Raises
    ------
    TrakStoreError
        When they are in no store, of several splits, or of activations.
    """
    columns = tuple(_stored(part.train) for part in scores.parts)
    found = [one for one in columns if one is not None and one.committed_by is not None]
    if len(found) < len(columns) or len({layout.last_part(one.path) for one in found}) > 1:
        raise TrakStoreError(
            f"an index is of the train rows of a store, at each epoch; these scores "
            f"({scores.method}) have others: make them with trak_scores(store) or the like"
        )
    return tuple(IndexedRows(*one) for one in zip(found, scores.epochs, strict=True))


def _stored(rows: Rows) -> StoredColumn | None:
    while isinstance(rows, TakenRows | UnmaskedRows):
        rows = rows.base
    return rows if isinstance(rows, StoredColumn) else None

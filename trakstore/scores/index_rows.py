"""Rows of the store behind scores, which an index is of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trakstore.errors import SpecMismatchError, TrakStoreError
from trakstore.passes.rows import Rows, TakenRows, UnmaskedRows
from trakstore.scores.factored import Scores
from trakstore.scores.parts import Part
from trakstore.storage import layout
from trakstore.storage.backends.location import Location
from trakstore.storage.stored import StoredColumn
from trakstore.storage.tables.index_documents import IndexDocument, other_indexes

PLAIN = "plain"  # names the metric of scores without a kernel,
UNWEIGHTED = "unweighted"  # of a kernel whose rows count alike,
SAMPLED = "sampled"  # and of one of rows with drawn labels
# λ follows the rows: some that are masked or appended change it by about their share.
_DAMPING_SHARE = 0.2


@dataclass(frozen=True, eq=False)
class IndexedRows:
    """The stored train rows of scores, at each epoch.

    Attributes
    ----------
    columns : tuple of StoredColumn, shape (n, k)
        All rows of the split, masked ones too.
    parts : tuple of Part
        Parts of the scores, in the same order.
    """

    columns: tuple[StoredColumn, ...]
    parts: tuple[Part, ...]

    @classmethod
    def of(cls, scores: Scores) -> IndexedRows:
        """Find the rows behind scores.

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
        if len({part.kernel for part in scores.parts}) > 1:
            raise TrakStoreError(
                "an index is of one kernel: its epochs here are weighted differently"
            )
        return cls(tuple(found), scores.parts)

    @property
    def location(self) -> Location:
        return self.columns[0].location

    @property
    def split(self) -> str:
        """Name of the train split."""
        return layout.last_part(layout.parent(self.columns[0].path))

    @property
    def kernel(self) -> str:
        """Name of the kernel in the path of the index."""
        part = self.parts[0]
        if part.factor is None:
            return PLAIN
        return SAMPLED if part.sampled else part.kernel or UNWEIGHTED

    @property
    def path(self) -> str:
        """Group of the index."""
        return layout.index_path(self.split, self.kernel)

    def document(self, seed: int = 0) -> IndexDocument:
        """Say what an index of these rows, as they are, is of."""
        specs: list[Any] = [one.committed_by for one in self.columns]
        rows, dim = self.columns[0].shape
        factors = [part.factor for part in self.parts]
        return IndexDocument(
            self.kernel,
            tuple(str(part.epoch) for part in self.parts),
            tuple(spec.nonce for spec in specs),
            tuple(None if one is None else float(one.damping) for one in factors),
            rows,
            dim,
            seed,
        )

    def refuse_other(self, stored: IndexDocument) -> None:
        """Raise a :class:`SpecMismatchError` where an index is of other rows or another kernel."""
        wanted = self.document()
        where = f"the index at {self.path} of {self.location}"
        again = "; run `trakstore index`, or ts.build_index, again"
        if stored.epochs != wanted.epochs:
            raise SpecMismatchError(
                f"{where} is of the epochs {', '.join(stored.epochs)}, these scores are of "
                f"{', '.join(wanted.epochs)}{again}"
            )
        if (stored.nonces, stored.dim) != (wanted.nonces, wanted.dim):
            raise SpecMismatchError(f"{where} is of features that were replaced since{again}")
        if stored.rows != wanted.rows:
            raise SpecMismatchError(
                f"{where} has {stored.rows} rows of {wanted.rows}: rows were appended since{again}"
            )
        if not _near(stored, wanted):
            raise SpecMismatchError(
                f"{where} was made with the damping λ={_shown(stored)}, these scores have "
                f"λ={_shown(wanted)}: give the same damping{again}"
            )

    def missing(self) -> str:
        """Write the message for an index that is not there."""
        return (
            f"{self.location} has no index of {self.split!r} for the kernel {self.kernel!r}"
            f"{other_indexes(self.location, self.split, self.kernel)}: run `trakstore index`, or "
            f"ts.build_index(scores)"
        )


def grows_from(stored: IndexDocument, wanted: IndexDocument) -> bool:
    """Tell whether an index becomes the wanted one by adding the rows behind its last."""
    same = ("kernel", "epochs", "nonces", "dim", "seed")
    return (
        all(getattr(stored, name) == getattr(wanted, name) for name in same)
        and _near(stored, wanted)
        and stored.rows <= wanted.rows
    )


def _near(stored: IndexDocument, wanted: IndexDocument) -> bool:
    pairs = zip(stored.dampings, wanted.dampings, strict=True)
    return all(
        one is other
        if one is None or other is None
        else abs(one - other) <= _DAMPING_SHARE * max(abs(one), abs(other))
        for one, other in pairs
    )


def _shown(document: IndexDocument) -> str:
    return ", ".join("none" if one is None else f"{one:.3g}" for one in document.dampings)


def _stored(rows: Rows) -> StoredColumn | None:
    while isinstance(rows, TakenRows | UnmaskedRows):
        rows = rows.base
    return rows if isinstance(rows, StoredColumn) else None

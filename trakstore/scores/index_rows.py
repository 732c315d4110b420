"""Rows of the store behind scores, which an index is of."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from trakstore.errors import SpecMismatchError, TrakStoreError
from trakstore.kernels.metric_root import square_root
from trakstore.passes.rows import Rows, TakenRows, UnmaskedRows
from trakstore.planning import ranges
from trakstore.scores.factored import Scores
from trakstore.scores.parts import F32, Part
from trakstore.storage import layout
from trakstore.storage.backends.chunks import TAIL
from trakstore.storage.backends.location import Location
from trakstore.storage.stored import StoredColumn
from trakstore.storage.tables.index_documents import IndexDocument, other_indexes

PLAIN = "plain"  # names the metric of scores without a kernel,
UNWEIGHTED = "unweighted"  # of a kernel whose rows count alike,
SAMPLED = "sampled"  # and of one of rows with drawn labels
# λ follows the rows: some that are masked or appended change it by about their share.
_DAMPING_SHARE = 0.2
# The turns are of the K of the first rows: those that vary in other directions are found badly by them.
# Where rows become more than so many times those of the turns, all are coded again by new turns, which
# costs at most as many codes as there are rows, however often some are appended.
_MOST_GROWTH = 2
_RECORDS_AT_ONCE = 4096  # commit records whose ends are read at once


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
        if scores.parts[0].kernel.startswith("mix"):
            raise TrakStoreError(
                f"an index is of a kernel of train rows, for all targets; {scores.method} scores with "
                f"{scores.parts[0].kernel} have one of their own targets: use mix=0"
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
        drawn = [part.sampled for part in self.parts if part.sampled is not None]
        return IndexDocument(
            self.kernel,
            tuple(str(part.epoch) for part in self.parts),
            tuple(spec.nonce for spec in specs),
            tuple(None if one is None else float(one.damping) for one in factors),
            rows,
            dim,
            seed,
            turned_rows=rows,
            sampled=tuple(one.nonce for one in drawn),
            draws=drawn[0].draws if drawn else 0,
        )

    def blocks_digest(self, rows: int, *, whole: bool = False) -> str:
        """Return the SHA-256 of the ends of the commit records of the first blocks, at each epoch.

        Parameters
        ----------
        rows : int
            Rows of these blocks.
        whole : bool
            Without a last block that the rows do not fill.
        """
        digest = hashlib.sha256()
        for column in self.columns:
            spec: Any = column.committed_by
            count = rows // spec.block_rows if whole else -(-rows // spec.block_rows)
            split = layout.parent(column.path)
            for start, stop in ranges(count, _RECORDS_AT_ONCE):
                keys = [layout.marker_key(split, block) for block in range(start, stop)]
                for end in self.location.get_tails(keys, TAIL):
                    digest.update(end or b"")
        return digest.hexdigest()

    def turns(self, seed: int) -> Iterator[F32]:
        """Yield the matrix R Sᵀ of each epoch, (k, k), which turns left factors L to x."""
        rng, dim = np.random.default_rng(seed), self.columns[0].shape[1]
        for part in self.parts:
            normal = rng.standard_normal((dim, dim), dtype=np.float32)
            rotation: F32 = np.linalg.qr(normal)[0]
            if part.factor is None:
                yield rotation
            else:
                yield rotation @ square_root(part.factor).astype(np.float32).T

    def grows_from(self, stored: IndexDocument, wanted: IndexDocument) -> bool:
        """Tell whether an index becomes the wanted one by adding the rows behind its last."""
        if (
            not _same_rows(stored, wanted)
            or stored.seed != wanted.seed
            or stored.rows > wanted.rows
            or wanted.rows > _MOST_GROWTH * (stored.turned_rows or stored.rows)
            or not _near(stored, wanted)
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
        """Raise a :class:`SpecMismatchError` where an index is of other rows or another kernel."""
        wanted = self.document()
        self.refuse_longer(stored)
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
        if (stored.sampled, stored.draws) != (wanted.sampled, wanted.draws):
            raise SpecMismatchError(
                f"{where} is of other sampled rows ({_drawn(stored)}) than these scores "
                f"({_drawn(wanted)}): they were replaced since{again}"
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


def _same_rows(stored: IndexDocument, wanted: IndexDocument) -> bool:
    names = ("kernel", "epochs", "nonces", "dim", "sampled", "draws")
    return all(getattr(stored, name) == getattr(wanted, name) for name in names)


def _near(stored: IndexDocument, wanted: IndexDocument) -> bool:
    pairs = zip(stored.dampings, wanted.dampings, strict=True)
    return all(
        one is other
        if one is None or other is None
        else abs(one - other) <= _DAMPING_SHARE * max(abs(one), abs(other))
        for one, other in pairs
    )


def _shown(document: IndexDocument) -> str:
    # The λ of a sum over draws is that of the kernel times their number.
    given = [one and one / (document.draws or 1) for one in document.dampings]
    return ", ".join("none" if one is None else f"{one:.3g}" for one in given)


def _drawn(document: IndexDocument) -> str:
    """Name the sampled rows of an index; an index of before these were kept names none."""
    if not document.sampled:
        return "not told"
    return f"{document.draws} draws, {', '.join(f'{one:08x}' for one in document.sampled)}"


def _stored(rows: Rows) -> StoredColumn | None:
    while isinstance(rows, TakenRows | UnmaskedRows):
        rows = rows.base
    return rows if isinstance(rows, StoredColumn) else None

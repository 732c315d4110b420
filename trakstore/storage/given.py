"""Features made elsewhere, with the columns beside them, before they become a split."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import SpecMismatchError, TrakStoreError, error_context
from trakstore.planning import CHUNK_BYTES, ranges
from trakstore.quantities import as_number, as_whole
from trakstore.spec import SplitSpec, StoreSpec
from trakstore.storage import layout
from trakstore.storage.backends.location import Location
from trakstore.storage.columns import (
    column_dtype,
    hashed_dtype,
    row_column,
    row_columns_of,
    sample_ids,
    stored_rows,
)
from trakstore.storage.completion import note_complete
from trakstore.storage.creation import make_split
from trakstore.storage.growth import append_rows, give_again
from trakstore.storage.layout import Epoch
from trakstore.storage.snapshots import open_splits
from trakstore.storage.split import Split, split_spec
from trakstore.storage.writer import BlockWriter

LEAST_ROWS = 64  # least rows of a block, which is a file for each column
HASHED = 32  # rows of lazy features that are hashed, spaced from the first to the last


@dataclass(frozen=True, eq=False)
class GivenRows:
    """Rows that a caller provides.

    Attributes
    ----------
    spec : StoreSpec
        Spec of the store that they are for.
    features : array or lazy array, shape (rows, dim)
        Features, sliced by rows and never taken as a whole.
    narrow : dict of name to array
        Row columns that were given.
    where : str
        Name of the split that they are for, for messages.
    first : int
        Number of the first row in the split.
    """

    spec: StoreSpec
    features: Any
    narrow: dict[str, NDArray[Any]]
    where: str
    first: int = 0

    @classmethod
    def of(
        cls,
        spec: StoreSpec,
        features: Any,
        out_to_loss: Any,
        ids: Sequence[int] | Sequence[str] | None,
        labels: Any,
        where: str,
        first: int = 0,
    ) -> Self:
        """Check the given columns; features are not read."""
        if getattr(features, "ndim", 0) != 2:
            shape = getattr(features, "shape", type(features).__name__)
            raise TrakStoreError(f"features must be an array of shape (rows, dim), got {shape}")
        if getattr(features, "requires_grad", False):  # torch converts no such tensor for NumPy
            features = features.detach()
        rows = features.shape[0]
        columns = {
            "out_to_loss": row_column(out_to_loss, rows, "out_to_loss", np.float32),
            "label": row_column(labels, rows, "labels", np.int64),
            layout.SAMPLE_ID: sample_ids(ids, rows, first),
        }
        narrow = {name: array for name, array in columns.items() if array is not None}
        return cls(spec, features, narrow, where, first)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self.features.shape[0])

    @property
    def dim(self) -> int:
        """Number of features."""
        return int(self.features.shape[1])

    @property
    def batch_rows(self) -> int:
        """Least rows that are read at once; fewer if so many are more than a chunk."""
        row_bytes = self.dim * np.dtype(self.spec.dtype).itemsize
        return max(1, min(LEAST_ROWS, CHUNK_BYTES // max(1, row_bytes)))

    @property
    def columns(self) -> tuple[tuple[str, str], ...]:
        """Names and dtypes of all columns that are stored, sorted."""
        narrow = {name: column_dtype(array) for name, array in self.narrow.items()}
        return tuple(sorted({**row_columns_of(self.spec.dtype), **narrow}.items()))

    def split_spec(
        self, checkpoint: str | None, learning_rate: float | None, block_rows: int
    ) -> SplitSpec:
        """Return the spec of the split that these rows become."""
        block_rows = as_whole(block_rows, "block_rows", 1)
        if not isinstance(checkpoint, str | None):
            raise TrakStoreError(f"checkpoint must be a text or None, got {checkpoint!r}")
        if learning_rate is not None:
            needed = "must be a number >= 0"
            learning_rate = as_number(learning_rate, "learning_rate", least=0, needed=needed)
        return SplitSpec(
            self.rows,
            self.dim,
            self.columns,
            checkpoint,
            learning_rate=learning_rate,
            given=self.fingerprint(),
            block_rows=block_rows,
        )

    @property
    def in_memory(self) -> bool:
        """True if everything given can be hashed and compared cheaply."""
        return type(self.features) is np.ndarray

    def fingerprint(self) -> str:
        """Return the SHA-256 of everything given, in stored form; of lazy features, 32 rows."""
        digest = hashlib.sha256()
        for name, values in sorted(self.narrow.items()):
            digest.update(f"{name} {column_dtype(values)};".encode())
            text = values.dtype.kind == "T"
            # The length before each text distinguishes "ab", "c" from "a", "bc".
            digest.update(
                "".join(f"{len(one)} {one}" for one in values.tolist()).encode(errors="replace")
                if text
                else np.ascontiguousarray(values).data
            )
        for start, stop in self._hashed():
            with np.errstate(over="ignore", under="ignore", invalid="ignore"):
                rows = np.asarray(self.features[start:stop]).astype(hashed_dtype(self.spec.dtype))
            digest.update(np.ascontiguousarray(rows).data)
        return digest.hexdigest()

    def _hashed(self) -> list[tuple[int, int]]:
        if self.in_memory:
            row_bytes = max(1, self.dim * np.dtype(self.spec.dtype).itemsize)
            return list(ranges(self.rows, max(1, CHUNK_BYTES // row_bytes)))
        # Lazy features are computed when they are sliced: hashing all of them could take hours.
        spaced = np.linspace(0, self.rows - 1, min(self.rows, HASHED)).astype(int)
        return [(at, at + 1) for at in sorted(set(spaced.tolist()))]

    def differing(self, split: Split) -> list[str]:
        """Return the columns in which a stored block differs from what was given.

        Of lazy features, only the first row of each block is compared.
        """
        missing, names = set(split.missing_blocks()), set[str]()
        for block in sorted(set(range(split.spec.blocks)) - missing):
            start, stop = split.spec.block_range(block)
            last, wide = stop if self.in_memory else start + 1, row_columns_of(self.spec.dtype)
            read = self.read(start, last)
            for name, values in {
                **{name: array[start:stop] for name, array in self.narrow.items()},
                **{name: read[name] for name in wide if name != "norm"},
            }.items():
                stored = split.column_as_stored(name).read(start, start + len(values))
                if not np.array_equal(stored, values):
                    names.add(name)
        return sorted(names)

    def read(self, start: int, stop: int) -> dict[str, NDArray[Any]]:
        """Read all columns of the split's rows start to stop, as they are stored."""
        # Appended rows are numbered after the existing ones.
        here = slice(start - self.first, stop - self.first)
        rows = np.asarray(self.features[here])
        with error_context(self.where):
            stored = stored_rows(rows, self.spec.dtype, start, self.spec.keep_bits)
        return stored | {name: array[here] for name, array in self.narrow.items()}


def write_given(
    location: Location, epoch: Epoch, split: str, given: GivenRows, spec: SplitSpec
) -> None:
    """Store given rows block by block; existing blocks are passed over.

    Raises
    ------
    SpecMismatchError
        When the split exists with another shape, other columns or other values.
    """
    spec = _same_as_stored(location, epoch, split, given, spec)
    spec = replace(spec, draws=_draws_now(location, epoch, split, spec.rows))
    made = make_split(location, given.spec, epoch, split, spec, batch_rows=given.batch_rows)
    writer = BlockWriter(made)
    for block in made.missing_blocks():
        writer.write(block, given.read(*made.spec.block_range(block)))
    note_complete(made)


def _draws_now(location: Location, epoch: Epoch, split: str, rows: int) -> int:
    """Return the draws of each train sample, if these rows have drawn labels; 0 if not, or unknown.

    The numbers of rows do not tell this later: the train split may have grown to as many rows as these.
    """
    if not split.endswith(layout.SAMPLED):
        return 0
    path = layout.split_path(epoch, split.removesuffix(layout.SAMPLED))
    document = location.get(layout.document_key(path))
    draws, more = divmod(rows, split_spec(document, path).rows) if document is not None else (0, 0)
    return 0 if more else draws


def _same_as_stored(
    location: Location, epoch: Epoch, split: str, given: GivenRows, spec: SplitSpec
) -> SplitSpec:
    """Return the spec to go on with; raise if what was stored differs from what is given."""
    (stored,) = open_splits(location, [(epoch, split)])
    if stored is None or stored.spec.given == spec.given:
        return spec
    if replace(stored.spec, given=spec.given) != replace(spec, keep_bits=given.spec.keep_bits):
        return spec  # other differences are reported when the split is created
    differing = given.differing(stored)
    if stored.spec.given is None and not differing:  # of format 1, or rows were appended
        return replace(spec, given=None)
    if given.in_memory and not differing and not stored.complete:
        # Bad values in the rest were corrected. The new document stops a process that still writes the
        # old values, and what it committed until then is compared again.
        give_again(stored, spec.given)
        differing = given.differing(stored)
        if not differing:
            return spec
    what = ", ".join(differing) or "what was given"
    raise SpecMismatchError(
        f"{location}: {split} at epoch {epoch} is there with other values of {what}: drop it "
        f"first, or choose another name or store"
    )


def append_given(split: Split, given: GivenRows) -> None:
    """Add given rows behind the last of a complete split.

    Raises
    ------
    IncompleteError
        When rows of the split are missing.
    TrakStoreError
        When columns or dimensions differ, or an id exists already.
    """
    if (given.columns, given.dim) != (split.spec.columns, split.dim):
        raise TrakStoreError(
            f"{given.where} has dimension {split.dim} and columns "
            f"{dict(split.spec.columns)}, got {given.dim} and {dict(given.columns)}"
        )
    split.require_complete()
    split.refuse_known_ids(given.narrow[layout.SAMPLE_ID])
    append_rows(split, given.rows, given.read)

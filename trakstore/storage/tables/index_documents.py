"""Documents of indexes: the rows that each is of, and the recalls that were measured."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from trakstore.documents import each, fields, made_by, number, optional, parsed, text, whole
from trakstore.errors import DamagedError, SpecMismatchError
from trakstore.planning import CHUNK_BYTES
from trakstore.storage import layout
from trakstore.storage.backends.location import Location
from trakstore.storage.claims import claimed
from trakstore.storage.tables.saved_arrays import SavedArray
from trakstore.storage.tables.saved_table import (
    ARRAYS,
    delete_table,
    known_fields,
    pending_save,
    read_table,
    table_arrays,
    table_names,
)

_STEP_COLUMNS = 64  # that products with levels take at once: codes are padded to as many
_SHARE = 64  # one direction of so many is apart


@dataclass(frozen=True)
class Recall:
    """Share of the exact lists of some targets that an index found, with the largest scores first.

    A row whose score equals the last of an exact list counts as found.

    Attributes
    ----------
    method : str
        Method of the scores.
    scaling : str
        Names of their kernel, of what their products are multiplied with, and a soft threshold.
    epochs : tuple of str
    dampings : tuple of (float or None)
        λ of the kernel of each epoch; None without one.
    codes : str
        Digest of what the codes of each epoch are of, see :func:`codes_digest`.
    k, candidates, checked : int
        Entries of the lists, candidates of each, and number of targets.
    recall : float
    """

    method: str
    scaling: str
    epochs: tuple[str, ...]
    dampings: tuple[float | None, ...]
    codes: str
    k: int
    candidates: int
    checked: int
    recall: float

    @classmethod
    def read(cls, what: Any) -> Recall:
        """Read it from a document."""
        made = cls(**fields(what, _RECALL_FIELDS, what="a recall of an index"))
        if len(made.epochs) != len(made.dampings):
            raise DamagedError("a recall of an index says of some epochs more than of others")
        return made


_RECALL_FIELDS = {
    **dict.fromkeys(("method", "scaling", "codes"), text()),
    "epochs": each(text()),
    "dampings": each(optional(number())),
    **dict.fromkeys(("k", "candidates", "checked"), whole(1)),
    "recall": number(),
}


@dataclass(frozen=True)
class IndexDocument:
    """Rows of an index, which are those of a train split at one epoch, and measured recalls.

    Attributes
    ----------
    epoch : str
    nonce : int
        Nonce of the split there.
    rows : int
        Rows of the split, masked ones included.
    dim : int
        Columns of the features.
    seed : int
        Seed of the signs by which rows are mixed.
    first_rows : int
        Rows of the split when the directions that are apart were found.
    blocks, whole_blocks : str
        SHA-256 of the ends of the commit records of the rows' blocks, and of those blocks alone that
        have as many rows as any: an append changes none of these.
    recalls : tuple of Recall
        One for each kind of scores that was measured and has this epoch as its first.
    """

    epoch: str
    nonce: int
    rows: int
    dim: int
    seed: int
    first_rows: int
    blocks: str = ""
    whole_blocks: str = ""
    recalls: tuple[Recall, ...] = ()

    @classmethod
    def read(cls, what: dict[str, Any]) -> IndexDocument:
        """Read it from what a table is.

        Raises
        ------
        DamagedError
            When it is no index, or its arrays do not fit what it says.
        """
        made = cls(**known_fields(what, _FIELDS))
        arrays, wanted = table_arrays(what), made.arrays(1)
        shapes = {name: one.shape for name, one in arrays.items()}
        if shapes != {one.name: one.shape for one in wanted}:
            raise DamagedError(f"an index of {made.rows} rows of {made.dim} has arrays of {shapes}")
        return made

    @property
    def token(self) -> str:
        """Name of an index that is being built, from which :func:`known_index` reads the document."""
        return json.dumps(self.values)

    @property
    def values(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {one: list(v) if isinstance(v, tuple) else v for one, v in asdict(self).items()}

    def arrays(self, chunk_rows: int) -> list[SavedArray]:
        """Describe the arrays, with so many rows in a chunk, in the order in which they are written."""
        rows, dim, size, r = self.rows, self.dim, code_bytes(self.dim), direction_count(self.dim)
        step = min(chunk_rows, rows)
        return [
            SavedArray("direction", "float32", (r, dim), (r, dim), ("direction", "feature")),
            SavedArray("level", "uint8", (rows, size), (step, size), ("sample", "byte")),
            SavedArray("share", "int16", (rows, r), (step, r), ("sample", "direction")),
            SavedArray("checksum", "uint32", (rows,), (step,), ("sample",)),
            SavedArray("step", "float32", (rows,), (step,), ("sample",)),
        ]


_FIELDS = {
    **dict.fromkeys(("epoch", "blocks", "whole_blocks"), text()),
    **dict.fromkeys(("nonce", "seed"), whole()),
    **dict.fromkeys(("rows", "dim", "first_rows"), whole(1)),
    "recalls": each(made_by(Recall.read, "a recall")),
}


def codes_digest(documents: Iterable[IndexDocument]) -> str:
    """Return the SHA-256 of what the codes of some epochs are of: recalls of others are not theirs."""
    each = [[one.nonce, one.rows, one.seed, one.first_rows, one.blocks] for one in documents]
    return hashlib.sha256(json.dumps(each).encode()).hexdigest()


def code_bytes(dim: int) -> int:
    """Return the bytes of the levels of a row, two columns each.

    Examples
    --------
    >>> code_bytes(2048), code_bytes(100)
    (1024, 64)
    """
    return -(-dim // _STEP_COLUMNS) * (_STEP_COLUMNS // 2)


def direction_count(dim: int) -> int:
    """Return the directions of rows that are apart.

    Examples
    --------
    >>> direction_count(2048), direction_count(100)
    (32, 1)
    """
    return max(1, dim // _SHARE)


def chunk_rows_of(dim: int, block_rows: int) -> int:
    """Return the rows of a chunk of levels: whole blocks, of about an ordinary chunk's bytes."""
    # An append stores the last, short block again. Its codes are in the last, short chunk alone, which
    # is written again as well.
    return max(1, CHUNK_BYTES // code_bytes(dim) // block_rows) * block_rows


def read_index(location: Location, path: str) -> tuple[IndexDocument, dict[str, SavedArray]] | None:
    """Read what the index at a path is, and its arrays; None where there is none, or no whole one.

    Raises
    ------
    DamagedError
        When its document is damaged, or is none of an index.
    """
    what = read_table(location, path)
    return (IndexDocument.read(what), table_arrays(what)) if what else None


def known_index(
    location: Location, path: str
) -> tuple[IndexDocument, dict[str, SavedArray], bool] | None:
    """Read an index whether or not it was built to its end; a damaged one counts as none.

    Returns
    -------
    (IndexDocument, dict, bool) or None
        Its document, its arrays, and whether all of them are written.
    """
    try:
        whole = read_index(location, path)
        if whole is not None:
            return (*whole, True)
        begun = pending_save(location.get(layout.document_key(path)))
        if begun is None:
            return None
        named = parsed(begun[0].encode())
        what = (
            {**named, ARRAYS: [one.to_dict() for one in begun[1]]}
            if isinstance(named, dict)
            else {}
        )
        return IndexDocument.read(what), table_arrays(what), False
    except (DamagedError, SpecMismatchError):
        return None


def drop_index(location: Location, split: str, epoch: layout.Epoch, nonces: Container[int]) -> None:
    """Delete the index of a split's rows at an epoch where it has one of these nonces there.

    Raises
    ------
    LocationError
        When another process builds it.
    """
    path = layout.index_path(split, epoch)
    known = known_index(location, path)
    if known is not None and known[0].nonce in nonces:
        with claimed(location, path, "drop"):
            delete_table(location, path)


def drop_older_indexes(location: Location, split: str) -> None:
    """Delete the indexes of a split that an earlier trakstore made, one for each kernel."""
    top = layout.child(layout.INDEXES, split)
    for name in table_names(location, top):
        if not name.startswith(layout.INDEX):
            delete_table(location, layout.child(top, name))


def check_index(_: Location, path: str, what: dict[str, Any]) -> None:
    """Read the document of an index, as :func:`~.saved_table.check_table` wants it read.

    Those of an earlier trakstore are at other paths, and are not read any more.
    """
    if layout.last_part(path).startswith(layout.INDEX):
        IndexDocument.read(what)

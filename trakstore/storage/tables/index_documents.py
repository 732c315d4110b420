"""Documents of indexes: the rows and the metric that each is of, and the recall that was measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trakstore.documents import each, fields, made_by, number, optional, parsed, text, whole
from trakstore.errors import DamagedError, SpecMismatchError, did_you_mean
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

WORD = 64  # bits that are compared at once: codes are padded to whole words
_TURN_ROWS = 1024


@dataclass(frozen=True)
class Recall:
    """Share of the exact lists of some targets that an index found, with the largest scores first.

    A row whose score equals the last of an exact list counts as found.

    Attributes
    ----------
    method : str
        Method of the scores.
    scaling : str
        Names of what their products are multiplied with, and a soft threshold.
    k, candidates, checked : int
        Entries of the lists, candidates of each, and number of targets.
    recall : float
    """

    method: str
    scaling: str
    k: int
    candidates: int
    checked: int
    recall: float

    @classmethod
    def read(cls, what: Any) -> Recall:
        """Read it from a document."""
        return cls(**fields(what, _RECALL_FIELDS, what="a recall of an index"))


_RECALL_FIELDS = {
    **dict.fromkeys(("method", "scaling"), text()),
    **dict.fromkeys(("k", "candidates", "checked"), whole(1)),
    "recall": number(),
}


@dataclass(frozen=True)
class IndexDocument:
    """Rows and metric of an index, and its measured recalls.

    Attributes
    ----------
    kernel : str
        Name of the kernel whose metric the rows were turned to; ``"plain"`` for none.
    epochs : tuple of str
        Epochs of the rows, in order.
    nonces : tuple of int
        Nonces of the train split at these.
    dampings : tuple of (float or None)
        λ of each kernel; None without one.
    rows : int
        Rows of the split, masked ones included.
    dim : int
        Columns of the features.
    seed : int
        Seed of the rotations.
    blocks, whole_blocks : str
        SHA-256 of the ends of the commit records of the rows' blocks, and of those blocks alone that
        have as many rows as any: an append changes none of these.
    recalls : tuple of Recall
        One for each kind of scores that was measured.
    turned_rows : int
        Rows of the split when the turns were made; 0 in documents of before this was kept.
    sampled : tuple of int
        Nonces of the split of drawn labels whose rows the kernel is of; empty for train rows.
    draws : int
        Rows of that split for each train row; 0 for train rows.
    """

    kernel: str
    epochs: tuple[str, ...]
    nonces: tuple[int, ...]
    dampings: tuple[float | None, ...]
    rows: int
    dim: int
    seed: int
    blocks: str = ""
    whole_blocks: str = ""
    recalls: tuple[Recall, ...] = ()
    turned_rows: int = 0
    sampled: tuple[int, ...] = ()
    draws: int = 0

    @classmethod
    def read(cls, what: dict[str, Any]) -> IndexDocument:
        """Read it from what a table is.

        Raises
        ------
        DamagedError
            When it is no index, or its arrays do not fit what it says.
        """
        made = cls(**known_fields(what, _FIELDS, _NEWER))
        if not len(made.epochs) == len(made.nonces) == len(made.dampings) > 0:
            raise DamagedError("an index says of some epochs more than of others")
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
        count, dim, size = len(self.epochs), self.dim, code_bytes(self.dim)
        by_row, step = ("epoch", "sample"), min(chunk_rows, self.rows)
        shape, chunks = (count, self.rows), (1, step)
        turn = (1, min(dim, _TURN_ROWS), dim)
        return [
            SavedArray(
                "turn", "float32", (count, dim, dim), turn, ("epoch", "direction", "feature")
            ),
            SavedArray("signs", "uint8", (*shape, size), (*chunks, size), (*by_row, "byte")),
            SavedArray("checksum", "uint32", shape, chunks, by_row),
            SavedArray("length", "float32", shape, chunks, by_row),
        ]


_FIELDS = {
    **dict.fromkeys(("kernel", "blocks", "whole_blocks"), text()),
    "epochs": each(text()),
    "nonces": each(whole()),
    "dampings": each(optional(number())),
    **dict.fromkeys(("rows", "dim"), whole(1)),
    "seed": whole(),
    "recalls": each(made_by(Recall.read, "a recall")),
    **dict.fromkeys(("turned_rows", "draws"), whole()),
    "sampled": each(whole()),
}
_NEWER = ("turned_rows", "sampled", "draws")  # that documents of before do not have


def code_bytes(dim: int) -> int:
    """Return the bytes of the signs of a row: whole words of 64.

    Examples
    --------
    >>> code_bytes(2048), code_bytes(100)
    (256, 16)
    """
    return -(-dim // WORD) * (WORD // 8)


def chunk_rows_of(dim: int, block_rows: int) -> int:
    """Return the rows of a chunk of signs: whole blocks, of about half of an ordinary chunk's bytes."""
    # An append stores the last, short block again. Its codes are in the last, short chunk alone, which
    # is written again as well.
    return max(1, CHUNK_BYTES // 2 // code_bytes(dim) // block_rows) * block_rows


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


def drop_indexes(location: Location, split: str, nonce: int) -> None:
    """Delete the indexes of a split's rows, or of their kernel, at an epoch where it has this nonce.

    Raises
    ------
    LocationError
        When another process builds one of them.
    """
    tops = [layout.child(layout.INDEXES, one) for one in {split, layout.own_split(split)}]
    for path in [layout.child(top, name) for top in tops for name in table_names(location, top)]:
        known = known_index(location, path)
        if known is not None and nonce in (*known[0].nonces, *known[0].sampled):
            with claimed(location, path, "drop"):
                delete_table(location, path)


def check_index(_: Location, __: str, what: dict[str, Any]) -> IndexDocument:
    """Read the document of an index, as :func:`~.saved_table.check_table` wants it read."""
    return IndexDocument.read(what)


def other_indexes(location: Location, split: str, kernel: str) -> str:
    """Write the end of a message: kernels that the split has an index of."""
    names: Sequence[str] = table_names(location, f"{layout.INDEXES}/{split}")
    if kernel in names:
        return " that was built to its end"
    return did_you_mean(kernel, names) if names else ""

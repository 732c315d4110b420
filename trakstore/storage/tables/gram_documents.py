"""Documents of grams in a store: the rows that each was computed from, and its arrays.

What computes grams is in :mod:`trakstore.kernels.stored_grams`; a store reads their documents by itself
where rows are dropped whose gram is kept.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trakstore.documents import fields, number, one_of, text, whole
from trakstore.storage.backends.location import Location
from trakstore.storage.tables.saved_arrays import SavedArray
from trakstore.storage.tables.saved_table import read_table, table_arrays

ProductDtype: TypeAlias = Literal["float32", "float64"]
# Rows and columns of a chunk: 8 MB.
GRAM_CHUNK = 1024


@dataclass(frozen=True)
class GramOrigin:
    """The rows and weights that a gram was computed from, as its document in the store names them.

    Attributes
    ----------
    nonce : int
        Nonce of the split: a later split of the same name has a different one.
    rows : int
        Rows of the split, masked ones included.
    masked : int
        Number of rows that were left out.
    masked_digest : str
        SHA-256 of their positions (int64, little-endian, ascending); ``""`` for none.
    dtype : {"float32", "float64"}
        Dtype of the products.
    weighting : str
        Weighting of the rows, such as ``"loss"``; ``""`` where each counts as one.
    """

    nonce: int
    rows: int
    masked: int
    masked_digest: str
    dtype: ProductDtype
    weighting: str = ""

    @classmethod
    def of(
        cls,
        nonce: int,
        rows: int,
        masked: NDArray[np.int64],
        dtype: ProductDtype,
        weighting: str = "",
    ) -> GramOrigin:
        """Name the origin of a gram of all rows but those at the ascending positions ``masked``."""
        # In a fixed byte order, since the digest is compared on other machines.
        digest = hashlib.sha256(masked.astype("<i8").tobytes()).hexdigest() if len(masked) else ""
        return cls(nonce, rows, len(masked), digest, dtype, weighting)


@dataclass(frozen=True, eq=False)
class GramDocument:
    """A gram in the store, as its document describes it.

    Attributes
    ----------
    origin : GramOrigin
        Its ``dtype`` is the wanted one also where the products are of float64, so that it compares
        equal to the wanted origin; ``dtype`` below is the real one.
    used : int
        Number of unmasked rows, those of weight 0 included.
    trace : float
    dtype : {"float32", "float64"}
        Dtype of its products.
    arrays : dict of str to SavedArray
        ``gram``, and ``masked`` where rows were left out.
    """

    origin: GramOrigin
    used: int
    trace: float
    dtype: ProductDtype
    arrays: dict[str, SavedArray]


def read_gram_document(
    location: Location, path: str, dim: int, wanted: GramOrigin
) -> GramDocument | None:
    """Return the gram at a path if it has no more rows than wanted; None if none can be used.

    A damaged one counts as none: it is computed again.

    Parameters
    ----------
    location, path
        Place of the gram's group.
    dim : int
        Columns of the features.
    wanted : GramOrigin
        Rows that it is to be of; fewer, or others that were masked, will do.
    """
    try:
        document = read_table(location, path)
        if not document:
            return None
        known = fields({k: v for k, v in document.items() if k in _FIELDS}, _FIELDS)
        if known["used"] > known["rows"] or known["masked"] > known["rows"]:
            return None
        origin = GramOrigin(**{name: known[name] for name in asdict(wanted)})
        arrays = table_arrays(document)
        # A gram of format 1 has no checksums: its chunks may be of any matrix.
        if arrays["gram"].tails is None or arrays["gram"].shape != (dim, dim):
            return None
    except (KeyError, TypeError, ValueError, OSError):
        return None
    same = (origin.nonce, origin.weighting) == (wanted.nonce, wanted.weighting)
    if not same or origin.dtype not in (wanted.dtype, "float64") or origin.rows > wanted.rows:
        return None
    used, trace = known["used"], known["trace"]
    return GramDocument(replace(origin, dtype=wanted.dtype), used, trace, origin.dtype, arrays)


_FIELDS = {
    **dict.fromkeys(("nonce", "masked", "used"), whole()),
    "rows": whole(1),
    **dict.fromkeys(("masked_digest", "weighting"), text()),
    "dtype": one_of("float32", "float64"),
    "trace": number(),
}


def gram_array(dim: int) -> SavedArray:
    """Describe the array of a gram of ``dim`` features."""
    chunk = min(dim, GRAM_CHUNK)
    return SavedArray("gram", "float64", (dim, dim), (chunk, chunk), ("feature", "feature_2"))

"""Rows of features recognised by their values, for features that return without their store."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Self

import numpy as np
from numpy.typing import NDArray

from trakstore.storage import layout
from trakstore.storage.split import Split

_DIGEST = 8  # bytes: in ten million rows two are equal in one of a hundred thousand stores


@dataclass(frozen=True)
class KnownRows:
    """Digests of the rows of a split, with properties of each row: 12 bytes a row.

    Attributes
    ----------
    digests : ndarray of uint64, shape (rows,)
        Ascending.
    out_to_loss : ndarray of float32, shape (rows,)
        Q of these rows.
    weights : str
        Hash of the weights with which they were computed; empty if unknown.
    """

    digests: NDArray[np.uint64]
    out_to_loss: NDArray[np.float32]
    weights: str

    @classmethod
    def of(cls, split: Split) -> Self:
        """Read all rows of a split, block by block."""
        features, blocks = split.column(layout.FEATURES), range(split.spec.blocks)
        parts = [row_digests(features.read(*split.spec.block_range(block))) for block in blocks]
        digests, scale = np.concatenate(parts), split.column("out_to_loss").read(0, split.rows)
        order = np.argsort(digests, kind="stable")
        return cls(digests[order], scale[order], split.spec.checkpoint or "")

    def places(self, digests: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return the position of each given row among these rows; -1 if it is none of them."""
        at = np.minimum(np.searchsorted(self.digests, digests), len(self.digests) - 1)
        return np.where(self.digests[at] == digests, at, -1)


def row_digests(features: NDArray[np.floating]) -> NDArray[np.uint64]:
    """Return a digest of each row, as float32, shape (rows,).

    Examples
    --------
    >>> one, other, again = row_digests(np.array([[1.0, 2.0], [2.0, 1.0], [1.0, 2.0]]))
    >>> bool(one == again), bool(one == other)
    (True, False)
    """
    rows = np.ascontiguousarray(features, dtype="<f4")
    joined = b"".join(blake2b(row.data, digest_size=_DIGEST).digest() for row in rows)
    return np.frombuffer(joined, dtype=np.uint64)

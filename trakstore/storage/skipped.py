"""Rows that were bad when they were written: left out like masked rows, each with its reason.

All numbers of such a row are NaN, its norm too, which the marker of its block commits: this identifies
them. The column ``skipped`` says in which blocks there are any, and why; a worker writes it for its own
block alone, before the block's marker. No marker counts that column, so the reason is also in the norm,
in bits that a NaN leaves free: a chunk of another block, or an older one, would disagree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import DamagedError
from trakstore.storage import layout
from trakstore.storage.split import Split

# Bits of the reasons, from the lowest on; this is a part of the format.
REASONS = (layout.FEATURES, "output", "loss", "out_to_loss", "label", "activations", "storage")
_WORDS = {
    "label": "a label that is no class of the model",
    "storage": "features that the stored dtype cannot hold",
}


@dataclass(frozen=True)
class SkippedRow:
    """A row that was bad when it was written.

    Attributes
    ----------
    position : int
        Position in its split.
    id : int or str
        Id of the sample.
    reason : str
        Words for what was wrong with it.
    """

    position: int
    id: int | str
    reason: str


def skipped_rows(split: Split) -> tuple[SkippedRow, ...]:
    """Return the rows of a split that were bad when they were written, by position."""
    rows = []
    norms, ids = split.column("norm"), split.column(layout.SAMPLE_ID)
    for row in split.skipped.tolist():
        reasons = split.reasons.read(row, row + 1)
        if unlike_norms(reasons, norms.read(row, row + 1)).any():
            raise DamagedError(
                f"{split.location}: {split.path}/{layout.SKIPPED} does not say why row {row} is bad: "
                f"it was copied here, or is an older one"
            )
        (sample,) = ids.read(row, row + 1).tolist()
        rows.append(SkippedRow(row, sample, reason_text(int(reasons[0]))))
    return tuple(rows)


_NAN = np.uint32(0x7FC00000)  # quiet, and any of its lower 22 bits may be set


def skipped_norms(reasons: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the norms of bad rows: NaN, with the reason in its lowest bits.

    Examples
    --------
    >>> norms = skipped_norms(np.array([4, 16], dtype=np.uint8))
    >>> norms, unlike_norms(np.array([4, 1], dtype=np.uint8), norms)
    (array([nan, nan], dtype=float32), array([False,  True]))
    """
    return (_NAN | reasons).view(np.float32)


def unlike_norms(reasons: NDArray[np.uint8], norms: NDArray[Any]) -> NDArray[np.bool_]:
    """Tell which rows are NaN with another reason than ``skipped`` says, or are good with one.

    Norms in older stores have no reason: any will do.
    """
    # A block has a chunk of reasons if any of its rows is bad; good rows then have reason 0. If no row
    # is bad, the chunk is left from a write that was stopped, and does not count.
    bad, stated = np.isnan(norms), stated_reasons(norms)
    other = (reasons == 0) | ((stated != 0) & (stated != reasons))
    return np.asarray(np.where(bad, other, (reasons != 0) & bad.any()))


def stated_reasons(norms: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the reasons in norms; 0 for good rows, and for all rows of older stores."""
    lowest = np.ascontiguousarray(norms, dtype="<f4").view("<u4").astype(np.uint8)
    return np.where(np.isnan(norms), lowest, np.uint8(0))


def reason_text(reason: int) -> str:
    """Return the words for a reason.

    Examples
    --------
    >>> reason_text(1 + 4 + 8)
    'NaN or infinite features, loss and out_to_loss'
    >>> reason_text(16)
    'a label that is no class of the model'
    """
    names = [name for bit, name in enumerate(REASONS) if reason >> bit & 1]
    *others, last = [name for name in names if name not in _WORDS] or [""]
    numbers = " and ".join(filter(None, [", ".join(others), last]))
    words = [f"NaN or infinite {numbers}"] if numbers else []
    words += [_WORDS[name] for name in names if name in _WORDS]
    return ", ".join(words) or "a reason that is not stored"

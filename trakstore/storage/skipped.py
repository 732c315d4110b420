"""Rows that were bad when they were written: left out as masked rows are, each with its reason.

All numbers of such a row are NaN, its norm too, which the marker of its block commits: that is how
they are known. The column ``skipped`` beside them says in which blocks there are any, and why; a
worker writes it for its own block alone, before the block's marker.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from trakstore.storage import layout
from trakstore.storage.split import Split

__all__ = ["REASONS", "SkippedRow", "reason_text", "skipped_rows"]

# the bits of a reason, from the lowest on: a part of the format
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
        In its split.
    id : int or str
        Of the sample.
    reason : str
        What was wrong with it.
    """

    position: int
    id: int | str
    reason: str


def skipped_rows(split: Split) -> tuple[SkippedRow, ...]:
    """The rows of a split that were bad when they were written, by position."""
    return tuple(_rows(split))


def _rows(split: Split) -> Iterator[SkippedRow]:
    reasons, ids = split.reasons, split.column(layout.SAMPLE_ID)
    for row in split.skipped.tolist():
        why = reason_text(int(reasons.read(row, row + 1)[0]))
        yield SkippedRow(row, ids.read(row, row + 1)[0].item(), why)


def reason_text(reason: int) -> str:
    """The words for a reason.

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
    told = [f"NaN or infinite {numbers}"] if numbers else []
    told += [_WORDS[name] for name in names if name in _WORDS]
    return ", ".join(told) or "a reason that is not stored"

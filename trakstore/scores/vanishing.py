"""Refusal of scores that are too small for float32: they would be rounded coarsely, or to zero."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import NumericsError
from trakstore.passes.rows import Rows, TakenRows
from trakstore.planning import ranges
from trakstore.scores.parts import F32, Part

# Left factors of this size and more make scores that float32 holds, with train rows of any size that
# gradients have.
_LARGE = 2.0**-20
# Below 2**-126 float32 has fewer digits, and below 2**-149 none. Of scores that may be as large as this
# the largest keep theirs.
_LEAST = 2.0**-120
F64 = NDArray[np.float64]


def refuse_vanishing(
    lefts: Sequence[F32], parts: Sequence[Part], apart: Rows | None, first: int
) -> None:
    """Refuse targets whose scores with all train rows are below what float32 holds, and are not zero.

    Train rows are read only where left factors are small, until one of them is large enough.

    Parameters
    ----------
    lefts : sequence of float32 arrays, shape (w, k) each
        Left factors of a window of targets, one for each part.
    parts : sequence of Part
    apart : Rows, shape (n,), optional
        Column scale of the sum of all parts.
    first : int
        Number of the window's first target.

    Raises
    ------
    NumericsError
        For the first such target.
    """
    # Without a copy of the left factors, which may have all the memory that there is.
    sizes = np.array([np.maximum(left.max(axis=1), -left.min(axis=1)) for left in lefts])
    small = np.flatnonzero((sizes < _LARGE).all(axis=0))
    if not len(small):
        return
    # By Cauchy and Schwarz a score is no larger than the product of lengths, summed over the parts.
    bound, vanish = np.zeros(len(small)), np.zeros(len(small), dtype=bool)
    for part, left in zip(parts, lefts, strict=True):
        length, longest = _row_lengths(left)[small], 0.0
        zero = length == 0
        zero[zero] = _are_zero(part, first + small[zero])
        if zero.all():
            continue
        for each in _lengths(part, apart):
            longest = max(longest, each)
            if (zero | (bound + length * longest >= _LEAST)).all():
                break
        bound += length * longest
        # Where either side is zero, so are the scores, and that is right.
        vanish |= ~zero & (longest > 0)
    vanish &= bound < _LEAST
    if vanish.any():
        raise NumericsError(
            f"the scores of target {first + int(small[vanish][0])} are all smaller than float32 "
            f"holds, and are not zero: its gradient and those of all train rows are too small "
            f"(out_to_loss of samples that the model has memorised, for one); use of='output', or a "
            f"method whose scores have no such scale: trak, grad-cos"
        )


def _are_zero(part: Part, targets: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Tell which targets have features that are zero, times their scale, and not only in float32."""
    zero = np.zeros(len(targets), dtype=bool)
    if part.row_scale is not None:
        zero = TakenRows(part.row_scale, targets).read(0, len(targets)) == 0
    left = np.flatnonzero(~zero)
    for start, stop in ranges(len(left), part.target.chunk_rows):
        some = left[start:stop]
        zero[some] = ~TakenRows(part.target, targets[some]).read(0, len(some)).any(axis=1)
    return zero


def _lengths(part: Part, apart: Rows | None) -> Iterator[float]:
    """Yield the largest length of some train rows after the other, times their scales."""
    for start, stop in ranges(part.train.shape[0], part.train.chunk_rows):
        lengths = _row_lengths(part.train.read(start, stop))
        scale = part.column_scale if apart is None else apart
        if scale is not None:
            lengths = lengths * np.abs(scale.read(start, stop))
        yield float(lengths.max(initial=0))


def _row_lengths(rows: NDArray[Any]) -> F64:
    """Compute Euclidean lengths of rows in float64, whose squares do not vanish."""
    return np.asarray(np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64)))

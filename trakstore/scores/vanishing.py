"""Refusal of scores that are too small for float32: they would be rounded coarsely, or to zero."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import NumericsError
from trakstore.passes.rows import Rows
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
    sizes = np.array([np.abs(left).max(axis=1, initial=0) for left in lefts])
    small = np.flatnonzero((sizes < _LARGE).all(axis=0))
    if not len(small):
        return
    # By Cauchy and Schwarz a score is no larger than the product of lengths, summed over the parts.
    bound, vanish = np.zeros(len(small)), np.zeros(len(small), dtype=bool)
    for part, left in zip(parts, lefts, strict=True):
        length, longest = np.linalg.norm(left[small].astype(np.float64), axis=1), 0.0
        pairs = zip(length, small, strict=True)
        zero = np.array([not size and _is_zero(part, first + int(at)) for size, at in pairs])
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


def _is_zero(part: Part, target: int) -> bool:
    """Tell whether the features of a target times their scale are zero, and not only in float32."""
    if part.row_scale is not None and not part.row_scale.read(target, target + 1).any():
        return True
    return not part.target.read(target, target + 1).any()


def _lengths(part: Part, apart: Rows | None) -> Iterator[float]:
    """Yield the largest length of some train rows after the other, times their scales."""
    for start, stop in ranges(part.train.shape[0], part.train.chunk_rows):
        rows: F64 = np.asarray(part.train.read(start, stop), dtype=np.float64)
        lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows))
        scale = part.column_scale if apart is None else apart
        if scale is not None:
            lengths = lengths * np.abs(scale.read(start, stop))
        yield float(lengths.max(initial=0))

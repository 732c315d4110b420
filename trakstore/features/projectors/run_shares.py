"""Programs of a GPU that share the runs of a sparse sketch."""

from __future__ import annotations

__all__ = ["FEATURES", "SAMPLES", "share_count"]

SAMPLES, FEATURES = 8, 128  # of a program, which is one warp: 32 entries in flight a thread
_PROGRAMS = 4096  # that fill a large GPU twice
_RUNS = 16  # whole runs that a program should have, for partial sums to cost less than an eighth
_STEPS = 128  # runs, whole or not, that it may have before there are more programs


def share_count(batch: int, rows: int, rest: int, dim: int) -> int:
    """Return the number of parts in which the runs of ``(batch, rows, rest)`` are added.

    Examples
    --------
    >>> share_count(8, 256, 2048, 4096), share_count(64, 64, 576, 2048)
    (8, 1)
    """
    # It depends on shapes alone: another number would give other last bits.
    programs = -(-dim // FEATURES) * -(-batch // SAMPLES)
    whole, steps = rows * rest // (_RUNS * dim), rows * -(-rest // dim) // _STEPS
    return max(1, min(_PROGRAMS // programs, max(whole, steps)))

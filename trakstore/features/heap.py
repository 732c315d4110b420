"""Memory of the CPU that batches take again and again."""

from __future__ import annotations

import numpy as np

__all__ = ["keep_freed_memory"]

_LARGEST = (32 << 20) - (
    8 << 10
)  # bytes: glibc learns from blocks of up to 32 MB, with their header


def keep_freed_memory() -> None:
    """Let the allocator keep some memory that is freed, for the next batch.

    Each batch of features takes as much memory as the one before. glibc gives it back to the system at
    the end of each, and has every page of it cleared anew, unless the process has freed larger blocks
    before: it keeps up to twice the largest of those, 64 MB at most. For models whose activations are
    of some megabytes that is a quarter of all time; larger ones are large enough by themselves.
    """
    # The block is never written to, so that it costs no memory itself. Other allocators do not care.
    np.empty(_LARGEST, np.uint8)

"""Memory of the CPU that batches take again and again."""

from __future__ import annotations

import numpy as np

__all__ = ["keep_freed_memory"]

# Bytes. glibc learns from blocks of up to 32 MB with their header, for which 8 KB are left.
_LARGEST = (32 << 20) - (8 << 10)


def keep_freed_memory() -> None:
    """Let the allocator keep some memory that is freed, for the next batch.

    Each batch of features takes as much memory as the one before. glibc gives it back to the system at
    the end of each batch, and has every page cleared for the next one, unless the process has freed a
    larger block before: it keeps up to twice the largest of those, 64 MB at most. For models with some
    megabytes of activations this costs a quarter of all time; those with more free such blocks
    themselves.
    """
    # The block is never written to, so that it takes no memory. Other allocators ignore it.
    np.empty(_LARGEST, np.uint8)

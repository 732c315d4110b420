"""Memory of the CPU that batches take again and again."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

# Eight blocks of 4 MB are written and freed, over and over, as activations of batches are. A block of
# 5 MB was freed before, which is the largest: glibc then gives back what is freed above 10 MB.
_BATCHES = """
import resource, sys
import numpy as np
np.empty(5 << 20, np.uint8)
if sys.argv[1] == "kept":
    from trakstore.features.heap import keep_freed_memory
    keep_freed_memory()
def batch():
    held = [np.full(4 << 20, 1, np.uint8) for _ in range(8)]
for _ in range(3):
    batch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    batch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(how: str) -> int:
    """Count the pages that the system had to clear for ten batches."""
    # Dask leaves MALLOC_TRIM_THRESHOLD_ in the environment of a process that started workers. Where a
    # person sets a threshold, glibc learns none.
    environment = {name: value for name, value in os.environ.items() if "MALLOC" not in name}
    command = [sys.executable, "-c", _BATCHES, how]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's allocator")
def test_pages_of_a_batch_are_there_for_the_next() -> None:
    assert _faults("kept") < 100 < 1000 < _faults("not kept")

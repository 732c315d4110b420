"""A Dask scheduler in a process of its own, to be killed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["lonely_scheduler"]


@contextmanager
def lonely_scheduler() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A scheduler that never gets workers, and its address."""
    options = ["--port", "0", "--host", "127.0.0.1", "--no-dashboard"]
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            said = next(line for line in process.stderr if "Scheduler at:" in line)
            yield process, said.split()[-1]
        finally:
            process.kill()

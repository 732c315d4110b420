"""A service in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trakstore as ts


@dataclass
class Served:
    """The process, and the address that it answers at."""

    process: subprocess.Popen[str]
    address: str

    @property
    def port(self) -> str:
        return self.address.rpartition(":")[2]

    def end(self, how: int = signal.SIGTERM) -> int:
        """Its exit code after a signal."""
        self.process.send_signal(how)
        return self.process.wait(30)


@contextmanager
def serving(store: Path, *options: str) -> Iterator[Served]:
    """Start ``trakstore serve``; it is killed at the end, where it has not ended."""
    paths = [str(Path(ts.__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    given = [*options] if "--port" in options else [*options, "--port", "0"]
    command = [sys.executable, "-m", "trakstore", "serve", str(store), "--json", *given]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline() if process.stdout else ""
        assert line, f"the service ended with {process.wait(30)}"
        document: dict[str, Any] = json.loads(line)
        assert document["process"] == process.pid
        yield Served(process, document["address"])
    finally:
        process.kill()
        process.wait(30)
        if process.stdout:
            process.stdout.close()

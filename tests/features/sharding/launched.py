"""Real ranks, started as people start them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import trakstore as ts

HERE = Path(__file__).parent
ROOT = Path(ts.__file__).parent.parent


def command(ranks: int, *arguments: str) -> list[str]:
    whole = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*whole, f"--nproc-per-node={ranks}", *arguments]


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), str(HERE.parents[1])])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **more}


def torchrun(
    ranks: int, script: str, *arguments: str, cwd: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a script beside this file, or a module after ``-m``, by so many ranks."""
    named = [script] if script == "-m" else [str(HERE / script)]
    return subprocess.run(
        command(ranks, *named, *arguments),
        cwd=cwd,
        env=environment(**variables),
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )

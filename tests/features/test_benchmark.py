"""The benchmark runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "featurize.py"


@pytest.mark.slow
def test_the_benchmark_of_features_runs_small() -> None:
    command = [sys.executable, str(SCRIPT), "--small"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    for words in (
        "x floor: sjlt",
        "with some rows checked",
        "of the matmul peak",
        "Spearman",
        "MB of the floor",
        "kronecker whole",
    ):
        assert words in done.stdout

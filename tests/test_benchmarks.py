"""Benchmarks run, small, so that they do not rot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.parametrize("options", [[], ["--dtype", "float16", "--cluster", "2"]])
def test_scoring_prints_a_ratio_for_each_operation(options: list[str], tmp_path: Path) -> None:
    command = [sys.executable, str(FOLDER / "scoring.py"), "--small", "--folder", str(tmp_path)]
    done = subprocess.run(
        [*command, *options], capture_output=True, text=True, timeout=120, check=True
    )
    names = [line.split()[0] for line in done.stdout.splitlines()[2:]]
    assert names == ["gram", "top_k", "matrix"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("what", "limit", "expected"),
    [("blocked", "40MB", "blocked takes"), ("large", "200MB", "peak")],
)
def test_limits_print_times_and_peaks(what: str, limit: str, expected: str, tmp_path: Path) -> None:
    command = [sys.executable, str(FOLDER / "limits.py"), what, "--small", "--limit", limit]
    done = subprocess.run(
        [*command, "--folder", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    assert expected in done.stdout.splitlines()[-1]
    assert not list(tmp_path.iterdir())

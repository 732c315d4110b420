"""Examples run, small, so that they do not rot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "examples"


def run(*command: str, cwd: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(FOLDER.parent)}
    whole = [sys.executable, str(FOLDER / command[0]), *command[1:]]
    done = subprocess.run(
        whole, capture_output=True, text=True, timeout=280, check=True, env=environment, cwd=cwd
    )
    return done.stdout


def test_three_lines_of_algebra_equal_the_library(tmp_path: Path) -> None:
    out = run("minimal.py", cwd=tmp_path)  # ends with an error where they differ by more than 0.1%
    assert float(out.splitlines()[-1].split()[-1]) < 1e-3


@pytest.mark.slow
def test_functions_that_taught_a_language_model(tmp_path: Path) -> None:
    out = run("language_model.py", "--steps", "8", "--functions", "24", cwd=tmp_path)
    assert out.count("argparse.") == 4 * 7  # four prompts, five helpful and two harmful functions

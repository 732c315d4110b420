"""Two operations at once give what one of their two orders gives, or one of them is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from storage.races import OPERATIONS

SCRIPT = Path(__file__).parent / "races.py"


def run(folder: Path, rounds: int, *pairs: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), "--rounds", str(rounds), str(folder), *pairs]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "none was wrong" in done.stdout, done.stdout + done.stderr


def test_some_pairs(tmp_path: Path) -> None:
    run(tmp_path, 1, "mask+append", "kernel+mask", "drop+append")


@pytest.mark.slow
@pytest.mark.parametrize("first", OPERATIONS)
def test_every_pair(tmp_path: Path, first: str) -> None:
    names = list(OPERATIONS)
    run(tmp_path, 3, *(f"{first}+{second}" for second in names[names.index(first) :]))

"""The benchmark runs."""

from __future__ import annotations

import json
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


@pytest.mark.slow
def test_the_benchmark_of_counts_runs_small(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="kernels need Triton, which there is for Linux")
    pytest.importorskip("transformers")
    script, kept = SCRIPT.with_name("counts.py"), tmp_path / "counts.json"
    command = [sys.executable, "-W", "ignore", str(script), "--small", "--json", str(kept)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    assert "are not in this" not in done.stdout, "every parameter was counted"
    cases = json.loads(kept.read_text())
    assert len(cases) == 5
    for case in cases.values():
        for kind in ("sjlt", "kronecker"):
            assert case[kind]["launches"] > case["half"]["launches"]
            assert case[kind]["bytes"] > case["half"]["bytes"]

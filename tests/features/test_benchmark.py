"""The benchmark runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

# Launches of a batch of the small models, beside those of their own forward and half backward passes:
# of sjlt and kronecker. A launch that comes back in a step is seen here.
MOST = {
    "Llama-like, batch 8 x 512, bfloat16": (24, 27),
    "GPT-2-like, batch 16 x 512, bfloat16": (86, 90),
    "GPT-2-like, batch 16 x 512, float32": (89, 88),
    "ResNet-18, batch 64, float32": (84, 70),
    "ResNet-18, batch 64, bfloat16": (55, 108),
}
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
    assert cases.keys() == MOST.keys()
    for name, case in cases.items():
        for kind, most in zip(("sjlt", "kronecker"), MOST[name], strict=True):
            assert 0 < case[kind]["launches"] - case["half"]["launches"] <= most
            assert case[kind]["bytes"] > case["half"]["bytes"]

"""Benchmarks run, small, so that they do not rot."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"
pytestmark = pytest.mark.slow
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(FOLDER.parent)}  # of this checkout


def run(*command: str, most: float = 240) -> list[str]:
    """The lines that a benchmark prints within ``most`` seconds."""
    whole = [sys.executable, str(FOLDER / command[0]), *command[1:]]
    done = subprocess.run(
        whole, capture_output=True, text=True, timeout=most, check=True, env=ENVIRONMENT
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize("options", [[], ["--dtype", "float16", "--cluster", "2"]])
def test_scoring_prints_a_ratio_for_each_operation(options: list[str], tmp_path: Path) -> None:
    lines = run("scoring.py", "--small", "--folder", str(tmp_path), *options)
    assert [line.split()[0] for line in lines[2:]] == ["gram", "top_k", "matrix"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("what", "limit", "expected"),
    [("blocked", "40MB", "blocked takes"), ("large", "200MB", "peak")],
)
def test_limits_print_times_and_peaks(what: str, limit: str, expected: str, tmp_path: Path) -> None:
    lines = run("limits.py", what, "--small", "--limit", limit, "--folder", str(tmp_path))
    assert expected in lines[-1]
    assert not list(tmp_path.iterdir())


def test_scores_over_time_print_peaks(tmp_path: Path) -> None:
    lines = run("over_time.py", "--small", "--folder", str(tmp_path))
    assert [line.split()[1] for line in lines[1:5]] == ["evolution", "transitions"] * 2
    assert [line.split()[0] for line in lines[5:]] == ["evolution", "transitions"]
    assert not list(tmp_path.iterdir())


def test_an_index_prints_times_and_a_recall_that_rises() -> None:
    lines = run("approximate.py", "--small")
    assert [line.split(":")[0] for line in lines[:4]] == ["warm", "warm", "cold", "cold"]
    recalls = [float(line.split("recall ")[1][:5]) for line in lines if "candidates:" in line]
    assert recalls == sorted(recalls) and 0.3 < recalls[0] < 0.98 < recalls[-1]


def test_tracking_has_a_price() -> None:
    lines = run("tracker.py", "--small")
    assert [line.split(":")[0] for line in lines[1:]] == [
        "tracked every 20 steps",
        "tracked every 1 steps",
    ]


def test_rounding_is_told_by_rows() -> None:
    lines = run("rounding.py", "--small")
    assert [line.split()[0] for line in lines] == ["normal", "normal", "gradients", "gradients"]


def test_the_benchmark_of_a_gpu_runs_small_without_one(tmp_path: Path) -> None:
    document = tmp_path / "gpu.json"
    lines = run("gpu.py", "--device", "cpu", "--small", "--json", str(document), most=480)
    assert lines[0].startswith("CPU, torch")
    parts = ["check", "llm", "scores", "projection", "pipeline", "peers"]
    assert [line.split()[0] for line in lines if " took " in line] == parts
    assert sum(" 0 parameters by the generic engine" in line for line in lines) == 9 + 2 * 4
    assert sum(" of the ceiling" in line for line in lines) == 2
    assert sum(" x the larger of product and copy" in line for line in lines) == 2 * 2
    assert sum(" x reading; on the CPU" in line for line in lines) == 2
    results = json.loads(document.read_text())
    figures = results["figures"]
    assert results["card"] == "CPU" and results["failed"] == []
    # What other libraries say of themselves is no figure.
    told = [x for x in lines if x.startswith("  ") and not x.startswith("  passed over: ")]
    assert [f"  {one['text']}" for one in figures] == told
    assert list(dict.fromkeys(one["part"] for one in figures)) == parts
    ratios = [one["ratio"] for one in figures if "ratio" in one]
    assert len(ratios) > 20 and all(ratio > 0 for ratio in ratios)


def test_a_part_of_the_benchmark_of_a_gpu_ends_in_time() -> None:
    lines = run("gpu.py", "projection", "--device", "cpu", "--small", "--seconds", "0")
    assert lines[1:] == ["  out of time: 1 cases were passed over"]


def test_architectures_are_listed_with_what_goes_by_known_layers() -> None:
    lines = run("architectures.py", "gemma", "olmoe", "--small")
    assert [line.split()[0] for line in lines[1:]] == ["architecture", "gemma", "olmoe"]
    assert all("100.0%" in line for line in lines[2:])
    assert "Derived" in lines[2] and "Grouped" in lines[3]


def test_the_scheduler_is_measured_and_a_table_follows() -> None:
    lines = run("scheduler.py", "--small")
    assert [line.split()[0] for line in lines[-4:]] == ["1", "10", "100", "1000"]
    assert any(line.startswith("top-k: 2 workers") for line in lines)


@pytest.mark.parametrize("options", [["--rounds", "3"], ["--rounds", "1", "--together"]])
def test_killed_and_doubled_runs_end_with_the_same_bits(options: list[str]) -> None:
    lines = run("kills.py", *options)
    assert lines[1] == f"{options[1]} rounds, 36 blocks each: every column equal bit for bit"


@pytest.mark.parametrize("model", ["mlp", "transformer", "resnet9"])
def test_peers_are_compared_or_passed_over(model: str) -> None:
    lines = run("peers.py", model, "--small", "--rounds", "1")
    labels = [line.split(":")[0].strip() for line in lines]
    assert "trakstore sjlt batch 4" in labels and "trakstore kronecker batch 4" in labels
    assert "passed over" in labels, "none of the peers is among our dependencies"


def test_accuracy_is_told_line_by_line(tmp_path: Path) -> None:
    lines = run("accuracy.py", "mlp", "--small", "--models", "15", "--out", str(tmp_path))
    named = {line.split()[1] for line in lines if line.startswith("mlp  ")}
    assert {"default", "temperature", "dim", "damping", "peers", "variant"} <= named
    assert any("traker, 64" in line for line in lines)
    assert (tmp_path / "accuracy.svg").stat().st_size > 1000
    tables = run(
        "removal.py", "mlp", "--small", "--targets", "2", "--repeats", "1", "--out", str(tmp_path)
    )
    assert sum(line.strip().startswith("top 2") for line in tables) == 3


def test_accuracy_on_language_models_is_told_line_by_line(tmp_path: Path) -> None:
    lines = run("accuracy.py", "lm", "--small", "--models", "8", "--out", str(tmp_path))
    assert lines[0].startswith("tiny: 16 models; losses of two models of one half correlate by")
    stored, dense = (
        [line for line in lines if f" {how} " in line] for how in ("64 x 2", "dense x 2")
    )
    assert len(stored) == 34 and "trak_scores" in stored[0] and "+0.000 [+0.000" in stored[0]
    assert [", threshold " in line for line in stored] == 17 * [False, True]
    assert sum("EK-FAC" in line for line in dense) == 2 * 4
    found = json.loads((tmp_path / "lm.json").read_text())
    eight = [at for at, line in enumerate(lines) if "8 bits" in line]
    assert len(eight) == 4 and all(" 64 x 2 " in lines[at] for at in eight)
    assert {one["bytes"] for one in found if "8 bits" in one["name"]} == {2 * 64}
    gains = [line for line in lines if line.startswith(" ")]
    assert len(gains) == sum(", threshold " in line for line in lines) > 17
    told = [line for line in lines[1:] if line and "is passed over" not in line]
    assert len(found) == len(told) - len(gains) and found[0]["bytes"] == 2 * 64 * 4
    assert {"traker", "unprojected_scores, 2 iterations, 64 numbers stored"} <= {
        one["name"] for one in found
    }
    assert (tmp_path / "language.svg").stat().st_size > 1000
    again = run("accuracy.py", "lm", "--small", "--models", "8", "--out", str(tmp_path))
    assert again == lines, "the truth is read, and scores are the same"
    only = run(
        "accuracy.py", "lm", "--small", "--models", "8", "--parts", "bits", "--out", str(tmp_path)
    )
    assert only == [lines[0], *lines[eight[0] : eight[-1] + 2]]
    assert sorted(map(str, json.loads((tmp_path / "lm.json").read_text()))) == sorted(
        map(str, found)
    )
    tables = run("language_use.py", "--small", "--targets", "4", "--out", str(tmp_path))
    assert [line.split(",")[0].split("  ")[0] for line in tables] == [
        "tiny: fall of a target's loss by a step on 10 documents",
        "trak_scores",
        "trak_scores",
        "BM25",
        "cosine of last states",
        "random",
        "tiny: rise of its loss without 5% of documents",
        "trak_scores",
        "trak_scores",
        "BM25",
    ]


def test_a_service_is_asked_by_many() -> None:
    lines = run("serve.py", "--clients", "8", "--seconds", "2")
    assert "errors {}" in lines[1]
    assert lines[2].startswith("latency p50") and lines[3].endswith("exit code 0")


def test_the_start_of_a_service_is_told() -> None:
    (line,) = run("serve.py", "--starts", "1")
    assert re.fullmatch(
        r"first answer after \d+\.\d s of processor time, .* \(medians of 1\)", line
    )


def test_planted_noise_is_looked_for() -> None:
    lines = run("noise.py", "mlp", "--small", "--models", "2")
    assert [line.split(":")[0].split(", ")[2] for line in lines] == [
        "self-score",
        "loss",
        "norm",
    ] * 2

"""Examples run, small, so that they do not rot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import trakstore as ts

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
def test_a_shortcut_is_found_and_removed(tmp_path: Path) -> None:
    lines = run("shortcut.py", "--seeds", "3", cwd=tmp_path).splitlines()
    aucs = lines[4].removeprefix("AUC of grad_cos: ").split()
    assert float(aucs[0]) > 0.95 and float(aucs[3]) > 0.8
    share = [float(line.split("removed")[1].split()[0]) for line in lines[-3:]]
    assert share[2] < 0.85 * share[1]


@pytest.mark.slow
def test_a_network_learns_to_add(tmp_path: Path) -> None:
    out = run("grokking.py", "--steps", "240", cwd=tmp_path)
    assert out.count("false discovery rate of 0.1") == 2 and "against random draws" in out
    assert "null from another seed of the projection" in out
    assert (tmp_path / "grokking.png").stat().st_size > 10_000


@pytest.mark.slow
def test_functions_that_taught_a_language_model(tmp_path: Path) -> None:
    out = run("language_model.py", "--steps", "8", "--functions", "24", cwd=tmp_path)
    assert out.count("argparse.") == 4 * 7  # four prompts, five helpful and two harmful functions


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [["--lora"], []])
def test_a_trainers_folder_becomes_a_report(tmp_path: Path, adapter: list[str]) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("peft")
    steps = ("--steps", "3", "--functions", "12")
    out = run("huggingface.py", *adapter, "--out", "out", *steps, cwd=tmp_path)
    assert out.count("argparse.") == 4 * 5  # four prompts, five functions
    page = (tmp_path / "out/report.html").read_text()
    assert "def __init__(self" in page and "raise ValueError(" in page
    assert '<span class="special">&lt;/s&gt;</span></pre>' in page  # by the collator's tokenizer
    folders = {
        int(one.name.split("-")[1]) for one in (tmp_path / "out/trainer").glob("checkpoint-*")
    }
    store = ts.open_store(tmp_path / "out/run.zarr")
    assert set(store.epochs) == folders and store.spec.output.name == "causal_lm"

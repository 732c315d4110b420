"""``trakstore demo``: the digits from data to picture."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from page_blocks import blocks

import trakstore as ts
from trakstore.cli.program import program_words

ROOT = Path(ts.__file__).parent.parent


def test_without_the_extra(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sklearn", "matplotlib"):
        with monkeypatch.context() as missing:
            missing.setitem(sys.modules, name, None)  # type: ignore[arg-type]
            ran = run("demo", "--out", tmp_path / "out", "--json")
        assert 'pip install "trakstore[demo]"' in ran.error
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else(run: Any, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    (tmp_path / "thesis.tex").write_text("dear")
    assert "has 'thesis.tex'" in run("demo", "--out", tmp_path, "--json").error
    assert "is a file" in run("demo", "--out", tmp_path / "thesis.tex", "--json").error
    assert [one.name for one in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_split_is_fixed() -> None:
    pytest.importorskip("sklearn")
    from trakstore.cli.demo import load_images

    data, again = load_images(), load_images()
    assert (len(data["train"].ids), len(data["test"].ids)) == (1297, 500)
    assert not set(data["train"].ids.tolist()) & set(data["test"].ids.tolist())
    for split in data:
        np.testing.assert_array_equal(data[split].images, again[split].images)
        assert data[split].images.max() == 1


def test_the_digits_are_those_that_scikit_learn_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    from sklearn.datasets import load_digits

    from trakstore.cli import demo

    wanted = np.column_stack(load_digits(return_X_y=True))
    np.testing.assert_array_equal(demo._digits_table(), wanted)
    # Another release may keep the file elsewhere.
    monkeypatch.setattr(demo, "_DIGITS", "nowhere.csv")
    np.testing.assert_array_equal(demo._digits_table(), wanted)


def test_training_takes_the_steps_of_torch_and_imports_no_compiler() -> None:
    pytest.importorskip("sklearn")
    code = """
import sys, torch
from trakstore.cli import demo
job = demo.digits()
heavy = {"torch._dynamo", "sklearn", "scipy.stats", "matplotlib", "distributed"} & set(sys.modules)
assert not heavy, heavy
with demo._reproducible():
    model = demo._network()
    optimizer = torch.optim.SGD(model.parameters(), demo.LEARNING_RATE, momentum=demo.MOMENTUM)
    images, labels = job.datasets["train"].tensors
    for epoch in range(2):
        for rows in torch.randperm(len(images)).split(demo.BATCH):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
for name, one in model.state_dict().items():
    assert torch.equal(one, job.checkpoints[2][name]), name
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr


def test_training_gives_the_same_bits_whatever_the_threads() -> None:
    pytest.importorskip("sklearn")
    import torch

    from trakstore.cli.demo import digits

    threads, state = torch.get_num_threads(), torch.get_rng_state()
    try:
        torch.set_num_threads(1)
        first = digits().checkpoints
        torch.set_num_threads(2)
        torch.rand(3)
        second = digits().checkpoints
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(state)
    assert first is not None
    assert second is not None
    for epoch, weights in first.items():
        for name, one in dict(weights).items():  # type: ignore[arg-type]
            assert torch.equal(one, second[epoch][name])  # type: ignore[index]


def test_commands_begin_with_words_that_a_shell_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, other = (tmp_path / name / "trakstore" for name in ("my env", "other"))
    for program in (own, other):
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\necho {program.parent.name}\n")
        program.chmod(0o755)

    def said(python: Path, *folders: Path) -> str:
        monkeypatch.setattr(sys, "executable", str(python))
        monkeypatch.setenv("PATH", os.pathsep.join([*map(str, folders), os.defpath]))
        words = program_words()
        if words.endswith("-m trakstore"):
            return words
        ran = subprocess.run(words, shell=True, capture_output=True, text=True, check=True)
        assert ran.stdout.strip() == own.parent.name
        return words

    python = own.with_name("python")
    assert said(python, own.parent) == "trakstore"
    assert said(python) == f"'{own}'"
    assert said(python, other.parent) == f"'{own}'"
    alone = tmp_path / "python"
    assert said(alone, other.parent) == f"{alone} -m trakstore"


def shown_lines(page: str) -> list[str]:
    """Patterns of the lines that a page says the demo prints; its numbers may be any."""
    (block,) = (
        one.text for one in blocks(page) if one.language == "text" and "TRAK over" in one.text
    )
    lines = [re.sub(r"\d+", r"\\d+", re.escape(line.strip())) for line in block.splitlines()]
    assert len(lines) == 6
    return [re.sub(r"(\\ )+", r"\\s+", line) for line in lines]


@pytest.mark.slow
def test_the_whole_way(run: Any, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    image = pytest.importorskip("matplotlib.image")
    out = tmp_path / "out"
    document = json.loads(run("demo", "--out", out, "--json").out)
    assert document["test_accuracy"] > 0.9
    assert document["rows_written"] == 3 * 1797
    shares = document["same_class"]
    assert shares["most_helpful"] > 0.6 > 3 * shares["base_rate"]
    assert shares["most_harmful"] < 0.5
    assert any(one["label"] != one["predicted"] for one in document["targets"])
    assert len(document["targets"]) == 6
    pixels = image.imread(document["picture"])
    assert min(pixels.shape[:2]) > 1000
    assert pixels[..., :3].std() > 0.1
    assert all(one.complete for one in ts.open_store(out / "store.zarr").status())
    again = run("demo", "--out", out)
    assert again.code == 0
    assert "all there" in again.out
    assert f"\n  {program_words()} info {out / 'store.zarr'}\n" in again.out
    for line in shown_lines((ROOT / "README.md").read_text()):
        assert re.search(line, again.out), line


@pytest.mark.slow
def test_two_ranks_by_torchrun_then_the_example(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    pytest.importorskip("sklearn")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "trakstore", "featurize", str(ROOT / "examples" / "digits.py:digits")]
    command += ["--store", "d.zarr"]
    how: dict[str, Any] = {
        "cwd": tmp_path,
        "env": environment,
        "capture_output": True,
        "text": True,
    }
    ran = subprocess.run(command, check=False, **how)
    assert ran.returncode == 0, ran.stderr
    for rank in (0, 1):  # one that comes late finds that the other has helped
        assert f"rank {rank} of 2: " in ran.stdout
    assert "of 2: wrote" in ran.stdout
    assert all(one.complete for one in ts.open_store(tmp_path / "d.zarr").status())
    command = [sys.executable, str(ROOT / "examples" / "digits.py"), "--store", "d.zarr"]
    ran = subprocess.run(command, check=False, **how)
    assert ran.stdout.startswith("wrote 0 rows"), ran.stderr
    assert ran.stdout.count("most helpful are") == 3

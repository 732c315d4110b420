"""What the terminal shows: where time went, colours, completion."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import trakstore as ts
from trakstore.cli import main
from trakstore.progress import on_terminal
from trakstore.storage.writer import BlockWriter

SLOW = """

class Slow:
    def __init__(self, dataset):
        self.dataset = dataset
    def __len__(self):
        return len(self.dataset)
    def __getitem__(self, index):
        import time
        time.sleep(0.03)
        return self.dataset[index]

def slow():
    job = small()
    job.datasets = {"train": Slow(job.datasets["train"])}
    return job
"""


def spent(run: Any, job: str, place: Path) -> dict[str, float]:
    document = json.loads(run("featurize", job, "--store", place, "--epoch", "1", "--json").out)
    found: dict[str, float] = document["spent"]
    assert min(found.values()) >= 0
    parts = sum(found.values()) - found["preparing"]
    assert parts == pytest.approx(document["seconds"], rel=0.02, abs=0.02)
    return found


def test_waiting_for_samples_is_told(run: Any, jobs: Path, tmp_path: Path) -> None:
    jobs.write_text(jobs.read_text() + SLOW)
    found = spent(run, f"{jobs}:slow", tmp_path / "a.zarr")
    assert found["reading"] > 0.3  # of 20 x 0.03 s, what was not hidden behind computing
    assert found["reading"] == max(found[name] for name in found if name != "preparing")


def test_parts_of_preparing_are_told(run: Any, jobs: Path, tmp_path: Path) -> None:
    jobs.write_text(jobs.read_text() + SLOW)
    said = run("featurize", f"{jobs}:slow", "--store", tmp_path / "a.zarr", "--epoch", "1").out
    parts = re.search(r"preparing: .*fingerprint of the samples ([0-9.]+) s", said)
    assert parts is not None and float(parts[1]) >= 1.2  # 20 samples of 0.03 s, each read twice
    document = json.loads(
        run(
            "featurize", f"{jobs}:slow", "--store", tmp_path / "b.zarr", "--epoch", "1", "--json"
        ).out
    )
    prepared = document["prepared"]
    assert 1.2 <= prepared["samples"] <= sum(prepared.values()) <= document["spent"]["preparing"]


def test_waiting_for_the_storage_is_told(
    run: Any, jobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = BlockWriter.write

    def slowly(self: BlockWriter, block: int, columns: Any) -> None:
        time.sleep(0.1)
        write(self, block, columns)

    monkeypatch.setattr(BlockWriter, "write", slowly)
    found = spent(run, f"{jobs}:small", tmp_path / "a.zarr")
    assert found["writing"] > 0.4  # 7 blocks, each behind the computation of the next
    assert found["writing"] > found["computing"]


def test_the_summary(run: Any, jobs: Path, tmp_path: Path) -> None:
    ran = run("featurize", f"{jobs}:small", "--store", tmp_path / "a.zarr")
    wrote, where, prepared = ran.out.splitlines()
    assert "wrote 52 rows in 14 blocks" in wrote
    assert f"{4 * 8 * 52 / 1000:.1f} kB of features" in wrote
    shares = [int(one.split()[-1].rstrip("%")) for one in where.split(": ")[1].split(", ")]
    assert shares == sorted(shares, reverse=True)
    assert 90 <= sum(shares) <= 103
    assert len(re.findall(r"[a-z ]+ [0-9.]+ s", prepared.removeprefix("preparing:"))) == 6


def test_other_ranks_say_one_line(run: Any, jobs: Path, tmp_path: Path) -> None:
    asked = ["featurize", f"{jobs}:small", "--store", tmp_path / "a.zarr"]
    ran = run(*asked, "--rank", "1", "--world-size", "2")
    assert (len(ran.out.splitlines()), ran.err) == (1, "")


def test_no_color_is_honoured(
    run: Any, holed: ts.FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    yellow = "\x1b[33m"
    assert yellow in run("info", holed.location).out
    monkeypatch.setenv("NO_COLOR", "1")
    assert yellow not in run("info", holed.location).out


COMPLETIONS = {
    "bash": {"COMP_WORDS": "trakstore ver", "COMP_CWORD": "1"},
    "zsh": {"_TYPER_COMPLETE_ARGS": "trakstore ver"},
    "fish": {"_TYPER_COMPLETE_ARGS": "trakstore ver", "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
}


@pytest.mark.parametrize("shell", COMPLETIONS)
def test_shells_complete(
    shell: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for what, more in (("complete", COMPLETIONS[shell]), ("source", {})):
        with monkeypatch.context() as patch, pytest.raises(SystemExit):
            for name, text in {**more, "_TRAKSTORE_COMPLETE": f"{what}_{shell}"}.items():
                patch.setenv(name, text)
            main([])
        out, err = capsys.readouterr()
        assert err == ""
        assert ("verify" if what == "complete" else "_TRAKSTORE_COMPLETE") in out


def test_a_process_completes(environment: dict[str, str]) -> None:
    asked = {**environment, **COMPLETIONS["bash"], "_TRAKSTORE_COMPLETE": "complete_bash"}
    command = [sys.executable, "-m", "trakstore"]
    ran = subprocess.run(command, env=asked, capture_output=True, text=True, check=False)
    assert ran.stderr == ""
    assert "verify" in ran.stdout


def test_info_names_the_command_that_goes_on(run: Any, jobs: Path, tmp_path: Path) -> None:
    place = tmp_path / "a.zarr"
    run("featurize", f"{jobs}:small", "--store", place)
    assert run("info", place).out.splitlines()[-1].endswith(f"trakstore verify {place}")
    (place / "1" / "train" / "written" / "c.1.0").unlink()
    last = run("info", place).out.splitlines()[-1]
    assert last.startswith("incomplete: 4 of 52 rows are missing")
    command = last.partition("go on with: trakstore ")[2].split()
    assert run(*command).code == 0
    assert run("info", place).out.splitlines()[-1].startswith("complete: all 52 rows")


def test_the_worst_info_fits_a_screen(run: Any, tmp_path: Path) -> None:
    store = ts.FeatureStore.create(tmp_path / "a.zarr", projection=ts.ProjectionSpec("sjlt", dim=2))
    for epoch in range(12):
        store.write_split(epoch, "train", np.ones((24, 2), np.float32), block_rows=2)
        for block in range(epoch % 7 + 1):  # no two neighbours alike
            (tmp_path / "a.zarr" / str(epoch) / "train" / "written" / f"c.{block}.0").unlink()
    lines = run("info", store.location).out.splitlines()
    assert len(lines) < 24
    assert any("9 more" in line for line in lines)
    assert lines[-1].startswith("incomplete")


@pytest.mark.parametrize(
    ("closed", "words"), [("2>&-", "info"), (">&-", "info"), (">&-", "--help")]
)
def test_a_process_without_streams_ends_as_any_other(
    environment: dict[str, str], tmp_path: Path, closed: str, words: str
) -> None:
    store = ts.FeatureStore.create(tmp_path / "a.zarr", projection=ts.ProjectionSpec("sjlt", dim=2))
    store.write_split(0, "train", np.ones((24, 2), np.float32))
    line = f"exec '{sys.executable}' -m trakstore {words} '{tmp_path}/a.zarr' {closed}"
    ran = subprocess.run(["sh", "-c", line], env=environment, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ("24" in ran.stdout) == (closed == "2>&-")


def test_nobody_looks_on_where_there_is_no_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert not on_terminal()
    scores = xr.DataArray([[0.5, -2.0, 1.0]], dims=("target", "train"))
    assert ts.top_k(scores, 1)["position"].values.tolist() == [[2]]

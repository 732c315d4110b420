"""Ctrl-C of a running command: one line, nothing left running, and the same command goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trakstore as ts
from trakstore.cli.commands import Command

ROOT = Path(ts.__file__).parent.parent

# loaded by every Python process that starts, workers too: tiles are logged, and slow when asked
SLOW = """
import os, time
from trakstore.scores.parts import Window

tile = Window.tile

def logged(self, start, stop, out=None):
    time.sleep(float(os.environ["TILE_SECONDS"]))
    with open(os.environ["TILE_LOG"], "a") as log:
        log.write(f"{start}\\n")
    return tile(self, start, stop, out)

Window.tile = logged
"""


@pytest.fixture
def store(tmp_path: Path) -> ts.FeatureStore:
    rng = np.random.default_rng(0)
    made = ts.FeatureStore.create(tmp_path / "s.zarr", projection=ts.ProjectionSpec("sjlt", 8))
    for split, rows in (("train", 40_000), ("test", 5)):
        X: Any = rng.normal(size=(rows, 8)).astype(np.float32)
        made.write_split(0, split, X, out_to_loss=np.ones(rows), block_rows=1000)
    return made


def start(folder: Path, seconds: float, *command: str) -> subprocess.Popen[str]:
    (folder / "sitecustomize.py").write_text(SLOW)
    environment = {
        **os.environ,
        "PYTHONPATH": f"{folder}:{ROOT}",
        "TILE_SECONDS": str(seconds),
        "TILE_LOG": str(folder / "log"),
    }
    whole = [sys.executable, "-m", "trakstore", *command]
    options: Any = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(whole, env=environment, start_new_session=True, **options)


def wait_for(what: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "did not come in time"
        time.sleep(0.05)


def gone(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.skipif(os.name != "posix", reason="needs process groups")
@pytest.mark.parametrize(
    "workers",
    [
        pytest.param([], id="threads"),
        pytest.param(["--workers", "2"], id="processes", marks=pytest.mark.slow),
    ],
)
def test_a_score_that_was_interrupted_goes_on(
    store: ts.FeatureStore, tmp_path: Path, workers: list[str]
) -> None:
    command = ["score", str(store.location.address), "--save", "a", *workers]
    chunks = Path(store.location.address) / "scores" / "a" / "scores" / "c" / "0"

    def written() -> int:
        return sum(one.name.isdigit() for one in chunks.iterdir()) if chunks.exists() else 0

    running = start(tmp_path, 0.3, *command)
    wait_for(lambda: written() >= 4)
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does: to all of them
    out, err = running.communicate(timeout=60)
    assert (running.returncode, out) == (130, "")
    assert err.splitlines() == [
        "interrupted: what was committed is kept; give the same command again"
    ]
    wait_for(lambda: gone(running.pid), 20)
    kept = written()
    (tmp_path / "log").unlink()
    again = start(tmp_path, 0, *command)
    assert again.communicate(timeout=120)[1] == "" and again.returncode == 0
    assert len((tmp_path / "log").read_text().split()) == 40 - kept
    saved = ts.open_scores(store, "a")
    np.testing.assert_allclose(saved, np.asarray(ts.trak_scores(store)), rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(os.name != "posix", reason="needs process groups")
def test_a_list_that_was_interrupted_has_no_result(store: ts.FeatureStore, tmp_path: Path) -> None:
    running = start(tmp_path, 0.3, "topk", str(store.location.address))
    wait_for(lambda: (tmp_path / "log").exists())
    os.killpg(running.pid, signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert (running.returncode, out) == (130, "")
    assert err.splitlines() == ["interrupted: there is no result yet; give the same command again"]


LEFT = {
    "featurize": "what was committed is kept; give the same command again",
    "evaluate lds": "what was committed is kept; give the same command again",
    "evaluate checks": "there is no result yet; give the same command again",
    "report": "no page was written; give the same command again",
    "export": "no file was made; give the same command again",
}


@pytest.mark.parametrize("words", LEFT)
def test_what_is_left_after_an_interrupt(
    words: str, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped() -> None:
        """Be interrupted."""
        raise KeyboardInterrupt

    monkeypatch.setattr(Command, "load", lambda _: stopped)
    ran = run(*words.split())
    assert (ran.code, ran.out, ran.err) == (130, "", f"interrupted: {LEFT[words]}\n")

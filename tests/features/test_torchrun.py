"""Real processes: any number of ranks, killed or stopped, gives the same store, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trakstore as ts

ROOT = str(Path(ts.__file__).parent.parent)

JOB = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from features.models import Samples, mlp
from trakstore.features import Job
import trakstore as ts

def job():
    # the ranks start together here, so that what each writes is its share, not its head start
    world = os.environ["WORLD_SIZE"]
    Path(f"{{world}}.{{os.environ['RANK']}}.started").touch()
    while len(list(Path(".").glob(f"{{world}}.*.started"))) < int(world):
        time.sleep(0.01)
    return Job(
        mlp(), {{"train": Samples(203), "test": Samples(37, seed=1)}},
        projector=ts.ProjectionSpec("sjlt", dim=64), batch_size=8,
        checkpoints={{0: mlp(0).state_dict(), 7: mlp(7).state_dict()}}, block_rows=9,
    )
"""


# Once the first blocks are committed, either all ranks wait to be stopped, or rank 1 kills itself and
# the others wait for the agent to restart them; the restarted ranks run through.
UNLUCKY = """
import os, signal, time
from pathlib import Path
import torch
from trakstore import ProjectionSpec
from trakstore.features import Job

class Samples:
    def __len__(self):
        return 60
    def __getitem__(self, index):
        if len(list(Path("a.zarr").rglob("written/c.*.0"))) >= 2:
            fault = os.environ.get("FAULT")
            if fault == "kill" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
                if os.environ["RANK"] == "1":
                    os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(60)
            if fault == "wait":
                time.sleep(60)
        time.sleep(0.005)
        return torch.full((4,), index / 60), index % 3

def job():
    model = torch.nn.Linear(4, 3)
    with torch.no_grad():
        model.weight.fill_(0.5); model.bias.fill_(0.1)
    return Job(model, {"train": Samples()}, projector=ProjectionSpec("sjlt", dim=8), batch_size=4,
               block_rows=4)
"""


def command(ranks: int, *arguments: str) -> list[str]:
    whole = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts=1"]
    return [*whole, f"--nproc-per-node={ranks}", "-m", "trakstore", *arguments]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ROOT, **more}


def torchrun(
    ranks: int, *arguments: str, cwd: Path, **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(ranks, *arguments),
        cwd=cwd,
        env=environment(**variables),
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def columns(where: Path | ts.FeatureStore) -> dict[tuple[Any, ...], np.ndarray[Any, Any]]:
    store = ts.open_store(where)
    return {
        (epoch, name, column): split.column(column).read(0, split.rows)
        for epoch in store.epochs
        for name in store.splits_of(epoch)
        for split in [store.split(epoch, name)]
        for column in split.columns
    }


@pytest.mark.slow
def test_one_two_and_three_ranks_write_the_same_store(tmp_path: Path) -> None:
    tests = str(Path(__file__).parent.parent)
    (tmp_path / "jobs.py").write_text(JOB.format(tests=tests))
    stores = []
    for ranks in (1, 2, 3):
        arguments = ["featurize", "jobs.py:job", "--store", f"{ranks}.zarr", "--json"]
        done = torchrun(ranks, *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        wrote = [json.loads(line)["rows"] for line in done.stdout.splitlines() if line.strip()]
        assert len(wrote) == ranks and sum(wrote) >= 2 * (203 + 37)
        assert min(wrote) >= 0.5 * 2 * (203 + 37) / ranks, f"unfair shares {wrote}"
        stores.append(columns(tmp_path / f"{ranks}.zarr"))
    assert len(stores[0]) == 2 * 2 * 7
    for other in stores[1:]:
        assert other.keys() == stores[0].keys()
        for name, column in stores[0].items():
            np.testing.assert_array_equal(other[name], column, err_msg=str(name))


def same_as_undisturbed(cwd: Path) -> None:
    (cwd / "undisturbed").mkdir()
    (cwd / "undisturbed" / "jobs.py").write_text(UNLUCKY)
    done = torchrun(1, "featurize", "jobs.py:job", "--store", "a.zarr", cwd=cwd / "undisturbed")
    assert done.returncode == 0, done.stderr
    got, expected = columns(cwd / "a.zarr"), columns(cwd / "undisturbed" / "a.zarr")
    assert got.keys() == expected.keys()
    for name, column in expected.items():
        np.testing.assert_array_equal(got[name], column, err_msg=str(name))


@pytest.mark.slow
def test_the_elastic_agent_restarts_ranks_and_they_go_on(tmp_path: Path) -> None:
    (tmp_path / "jobs.py").write_text(UNLUCKY)
    arguments = ["featurize", "jobs.py:job", "--store", "a.zarr", "--json"]
    done = torchrun(2, *arguments, cwd=tmp_path, FAULT="kill")
    assert done.returncode == 0, done.stderr
    wrote = [json.loads(line)["blocks"] for line in done.stdout.splitlines() if line.strip()]
    assert 0 < sum(wrote) <= 15 - 2  # the restarted ranks pass over what was committed
    same_as_undisturbed(tmp_path)


@pytest.mark.slow
def test_control_c_under_torchrun_then_the_same_command(tmp_path: Path) -> None:
    (tmp_path / "jobs.py").write_text(UNLUCKY)
    arguments = ["featurize", "jobs.py:job", "--store", "a.zarr", "--json"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    where: dict[str, Any] = {"cwd": tmp_path, "env": environment(FAULT="wait")}
    with subprocess.Popen(command(2, *arguments), **where, **pipes) as agent:
        until = time.monotonic() + 120
        while len(list(tmp_path.rglob("written/c.*.0"))) < 2 and time.monotonic() < until:
            assert agent.poll() is None, agent.communicate()
            time.sleep(0.05)
        time.sleep(0.5)
        agent.send_signal(signal.SIGINT)
        _, err = agent.communicate(timeout=60)
    assert agent.returncode != 0
    assert "stopped: rows committed in a.zarr: train at epoch 0" in err
    committed = ts.open_store(tmp_path / "a.zarr").status()[0].written_blocks
    done = torchrun(2, *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    wrote = [json.loads(line)["blocks"] for line in done.stdout.splitlines() if line.strip()]
    assert sum(wrote) >= 15 - committed > 0
    same_as_undisturbed(tmp_path)

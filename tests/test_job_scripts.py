"""The job scripts under examples/ run as they stand, on a cluster of one machine."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_lines import check_whole, trakstore_lines

import trakstore as ts

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / "examples").glob("*.sh"))

JOB = """
import torch
from trakstore import ProjectionSpec
from trakstore.features import Job

def job():
    data = lambda rows: torch.utils.data.TensorDataset(
        torch.linspace(-1, 1, 4 * rows).reshape(rows, 4), torch.arange(rows) % 3
    )
    model = torch.nn.Linear(4, 3)
    with torch.no_grad():
        model.weight.copy_(torch.linspace(-1, 1, 12).reshape(3, 4)); model.bias.zero_()
    spec = ProjectionSpec("sjlt", dim=8)
    return Job(model, {"train": data(40), "test": data(7)}, projector=spec, batch_size=4, block_rows=4)
"""

# runs a command as srun does: some processes at once, each told which it is
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
for ((i = 0; i < SLURM_NTASKS; i++)); do
  SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid" || exit 1; done
"""


def environment(cwd: Path, **more: object) -> dict[str, str]:
    """The commands of this environment and those in ``cwd`` come first; no launcher's variables."""
    clean = {
        k: v for k, v in os.environ.items() if not re.match("SLURM_|RANK|WORLD_SIZE|LOCAL_", k)
    }
    path = [str(cwd), str(Path(sys.executable).parent), os.environ["PATH"]]
    given = {name: str(value) for name, value in more.items()}
    common = {"PATH": os.pathsep.join(path), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return {**clean, **common, "JOB": "jobs.py:job", "HOST": "127.0.0.1", **given}


def start(script: str, cwd: Path, **more: object) -> subprocess.Popen[str]:
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    command = ["bash", str(ROOT / "examples" / script)]
    return subprocess.Popen(
        command, cwd=cwd, env=environment(cwd, **more), start_new_session=True, **pipes
    )


def finish(*running: subprocess.Popen[str]) -> None:
    try:
        said = [process.communicate(timeout=240)[0] for process in running]
    finally:
        for process in running:  # all that a script started ends with it, even if it ended first
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert [process.returncode for process in running] == [0] * len(running), "\n".join(said)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def features(where: Path) -> dict[str, np.ndarray[Any, Any]]:
    store = ts.open_store(where)
    assert all(split.complete for split in store.status())
    return {split: store.features(0, split).values for split in ("train", "test")}


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """A folder with a job, ``srun`` and this checkout's ``trakstore``."""
    (tmp_path / "jobs.py").write_text(JOB)
    commands = {"srun": SRUN, "trakstore": f'#!/bin/sh\nexec {sys.executable} -m trakstore "$@"\n'}
    for name, text in commands.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_one(script: Path) -> None:
    assert os.access(script, os.X_OK)
    checked = subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    lines = trakstore_lines(script.read_text())
    assert lines
    for words in lines:
        check_whole(words)


@pytest.mark.slow
def test_array_srun_and_torchrun_write_the_same_features(cluster: Path) -> None:
    array = {"SLURM_ARRAY_TASK_MIN": 3, "SLURM_ARRAY_TASK_COUNT": 2}
    tasks = [
        start("slurm_array.sh", cluster, STORE="array.zarr", SLURM_ARRAY_TASK_ID=i, **array)
        for i in (3, 4)
    ]
    finish(*tasks)
    finish(start("slurm_srun.sh", cluster, STORE="srun.zarr", SLURM_NTASKS=2))
    agents = {"SLURM_NTASKS": 1, "SLURM_NNODES": 1, "WORKERS": 2, "PORT": free_port()}
    finish(start("slurm_torchrun.sh", cluster, STORE="torchrun.zarr", **agents))
    first, *others = (features(cluster / f"{name}.zarr") for name in ("array", "srun", "torchrun"))
    assert np.abs(first["train"]).max() > 0 and first["train"].shape == (40, 8)
    for other in others:
        for split, values in first.items():
            np.testing.assert_array_equal(other[split], values)


@pytest.mark.slow
def test_a_dask_cluster_by_hand_scores(cluster: Path) -> None:
    finish(start("slurm_srun.sh", cluster, STORE="a.zarr", SLURM_NTASKS=1))
    (cluster / "srun").unlink()  # from here on it is one machine
    options = {"STORE": "a.zarr", "NAME": "by-cluster", "PORT": free_port(), "MEMORY": "2GB"}
    finish(start("dask_cluster.sh", cluster, WORKERS=2, **options))
    store = ts.open_store(cluster / "a.zarr")
    saved = ts.open_scores(store, "by-cluster").values
    np.testing.assert_allclose(saved, np.asarray(ts.trak_scores(store)), rtol=1e-5, atol=1e-7)

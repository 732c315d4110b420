"""Real processes: any number of ranks gives the same store, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
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


def torchrun(ranks: int, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={ranks}", "-m", "trakstore", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ROOT}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=240
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

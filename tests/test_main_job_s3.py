"""The main job on object storage: two real ranks write, and the numbers are those of a local store."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fault_proxy import fault_proxy, share_of_requests
from features.models import Samples, mlp

import trakstore as ts
from trakstore.features import Job, featurize_job
from trakstore.storage import objects

TESTS = str(Path(__file__).parent)
QUICK = 0.7  # seconds of a request, for runs with faults
ROWS = 2 * (101 + 19)
PATIENCE: Any = {"timeout": timedelta(seconds=QUICK)}
RANK = f"""
import sys
sys.path.insert(0, {TESTS!r})
from test_main_job_s3 import PATIENCE, job
from trakstore.features import featurize_job
from trakstore.storage import objects

objects.TIMEOUTS = PATIENCE
print(featurize_job(job(), sys.argv[1], progress=False).rows)
"""


def job() -> Job:
    return Job(
        mlp(),
        {"train": Samples(101), "test": Samples(19, seed=1)},
        projector=ts.ProjectionSpec("sjlt", dim=64),
        batch_size=8,
        checkpoints={0: mlp(0).state_dict(), 7: mlp(7).state_dict()},
        block_rows=9,
    )


def run_two_ranks(where: str, folder: Path) -> int:
    """Run the job with torchrun; rows that both ranks wrote."""
    script = folder / "rank.py"
    script.write_text(RANK)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", str(script), where]
    root = str(Path(ts.__file__).parent.parent)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return sum(int(line) for line in done.stdout.splitlines() if line.strip())


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> ts.FeatureStore:
    where, threads = tmp_path_factory.mktemp("local") / "run.zarr", torch.get_num_threads()
    torch.set_num_threads(1)  # as torchrun does
    featurize_job(job(), where, progress=False)
    torch.set_num_threads(threads)
    return ts.open_store(where)


def assert_same(store: ts.FeatureStore, local: ts.FeatureStore) -> None:
    """Every column to the bit, the scores and the lists."""
    assert store.epochs == local.epochs == (0, 7) and store.splits == local.splits
    assert all(status.complete for status in store.status())
    for epoch, split in ((e, s) for e in local.epochs for s in local.splits):
        mine, expected = store.split(epoch, split), local.split(epoch, split)
        for name in expected.columns:
            columns = (one.column(name).read(0, expected.rows) for one in (mine, expected))
            np.testing.assert_array_equal(*columns, err_msg=f"{epoch}/{split}/{name}")
    mine_scores, expected_scores = ts.trak_scores(store), ts.trak_scores(local)
    np.testing.assert_array_equal(np.asarray(mine_scores), np.asarray(expected_scores))
    assert ts.top_k(mine_scores, 20).identical(ts.top_k(expected_scores, 20))
    saved = ts.save_scores(mine_scores, store, "saved")
    np.testing.assert_array_equal(saved, np.asarray(expected_scores))


@pytest.mark.slow
def test_two_ranks_write_to_s3(bucket: str, local: ts.FeatureStore, tmp_path: Path) -> None:
    where = f"{bucket}/runs/digits.zarr"
    assert run_two_ranks(where, tmp_path) >= ROWS
    assert_same(ts.open_store(where), local)


@pytest.mark.slow
def test_two_ranks_write_to_s3_through_faults(
    server: str,
    bucket: str,
    local: ts.FeatureStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On 5% of requests a 500, a 503, a reset, a lost or late reply, or half a body."""
    monkeypatch.setattr(objects, "TIMEOUTS", PATIENCE)
    where = f"{bucket}/run.zarr"
    with fault_proxy(server, share_of_requests(0.05, seed=1), delay=QUICK + 0.2) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        assert run_two_ranks(where, tmp_path) >= ROWS
        assert len(proxy.injected) >= 5 and sum(proxy.injected.values()) > 15
        assert_same(ts.open_store(where), local)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    expected = local.features(7, "train")
    np.testing.assert_array_equal(ts.open_store(where).features(7, "train"), expected)

"""The main job on object storage: two real ranks write, and the numbers are those of a local store."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fault_proxy import fault_proxy, share_of_requests
from features.models import Samples, mlp
from features.test_torchrun import columns, torchrun

import trakstore as ts
from trakstore.features import Job, featurize_job
from trakstore.storage.backends import objects

TESTS = str(Path(__file__).parent)
QUICK = 0.7  # seconds of a request, for runs with faults
ROWS = 2 * (101 + 19)
PATIENCE: Any = {"timeout": timedelta(seconds=QUICK)}
JOBS = f"""
import sys
sys.path.insert(0, {TESTS!r})
from test_main_job_s3 import PATIENCE, job
from trakstore.storage.backends import objects

objects.TIMEOUTS = PATIENCE
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
    (folder / "jobs.py").write_text(JOBS)
    done = torchrun(2, "featurize", "jobs.py:job", "--store", where, "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    return sum(json.loads(line)["rows"] for line in done.stdout.splitlines() if line.strip())


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
    mine, expected = columns(store), columns(local)
    assert mine.keys() == expected.keys()
    for name, column in expected.items():
        np.testing.assert_array_equal(mine[name], column, err_msg=str(name))
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

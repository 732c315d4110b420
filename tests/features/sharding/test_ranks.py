"""Ranks that are killed or fail, and ranks that load what they hold and no more."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from features.sharding import jobs
from features.sharding.launched import HERE, environment, torchrun

import trakstore as ts
from trakstore.features import featurize_job

pytestmark = pytest.mark.slow

COMMAND = ["-m", "trakstore", "featurize"]


def ran(ranks: int, job: str, cwd: Path, *more: str, **variables: str) -> int:
    arguments = [*COMMAND, f"{HERE / 'jobs.py'}:{job}", "--store", "ranks.zarr", "--fsdp"]
    done = torchrun(ranks, *arguments, "--device", "cpu", *more, cwd=cwd, **variables)
    if done.returncode and not variables:
        raise AssertionError(done.stderr)
    return done.returncode


def same_rows(cwd: Path, job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(cwd)
    featurize_job(getattr(jobs, job)(), "alone.zarr", progress=False)
    expected, got = (ts.open_store(cwd / name) for name in ("alone.zarr", "ranks.zarr"))
    assert got.epochs == expected.epochs
    for epoch in expected.epochs:
        one, other = (store.split(epoch, "train") for store in (expected, got))
        assert one.spec.checkpoint == other.spec.checkpoint
        rows, others = (each.column("features").read(0, one.rows) for each in (one, other))
        assert np.abs(rows - others).max() < 1e-5 * np.abs(rows).max()


def test_a_rank_is_killed_and_fewer_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.monotonic()
    # Of 23 blocks, dealt in turn to 4 ranks, the 19th is the fifth one of rank 2.
    assert ran(4, "unlucky", tmp_path, FAULT="kill 2 73") != 0
    assert time.monotonic() - began < 120
    status = ts.open_store(tmp_path / "ranks.zarr").status()[0]
    assert 0 < status.written_blocks < 23
    assert ran(2, "unlucky", tmp_path) == 0
    assert ts.open_store(tmp_path / "ranks.zarr").status()[0].complete
    same_rows(tmp_path, "unlucky", monkeypatch)


def test_a_rank_has_no_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes part in all passes of the other one, also in those by which that checks at the end."""
    assert ran(2, "few", tmp_path) == 0
    assert all(status.complete for status in ts.open_store(tmp_path / "ranks.zarr").status())
    same_rows(tmp_path, "few", monkeypatch)


def test_a_rank_that_fails_ends_all_with_its_error(tmp_path: Path) -> None:
    # Without torchrun, which would stop the others before they could say anything.
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    arguments = [f"{HERE / 'jobs.py'}:unlucky", "--store", "s.zarr", "--fsdp", "--device", "cpu"]
    began, ranks = time.monotonic(), []
    for rank in ("0", "1", "2"):
        where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "3"}
        variables = environment(
            MASTER_ADDR="127.0.0.1", MASTER_PORT=port, FAULT="fail 1 65", **where
        )
        ranks.append(
            subprocess.Popen(
                [sys.executable, *COMMAND, *arguments],
                cwd=tmp_path,
                env=variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    told = [one.communicate(timeout=120)[0] for one in ranks]
    assert time.monotonic() - began < 120
    assert all(one.returncode for one in ranks)
    assert "OSError: the disk is broken" in told[1]
    for rank in (0, 2):
        assert "rank 1 failed: OSError: the disk is broken" in told[rank], told[rank]
    assert ts.open_store(tmp_path / "s.zarr").status()[0].written_blocks > 0


@pytest.mark.parametrize(("ranks", "more"), [(2, ()), (4, ("--tp", "2"))])
def test_weights_are_loaded_by_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: int, more: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    jobs.write_checkpoints()
    assert ran(ranks, "stored", tmp_path, *more) == 0
    same_rows(tmp_path, "stored", monkeypatch)

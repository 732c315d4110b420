"""Ranks that are killed or fail, and ranks that load what they hold and no more."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from features.sharding import jobs
from features.sharding.launched import HERE, command, environment, torchrun

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


def test_groups_of_ranks_share_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [
        *COMMAND,
        f"{HERE / 'jobs.py'}:unlucky",
        "--store",
        "ranks.zarr",
        "--fsdp",
        "--json",
    ]
    groups = [
        subprocess.Popen(
            command(2, *arguments, "--device", "cpu", "--rank", group, "--world-size", "2"),
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for group in ("0", "1")
    ]
    told = [one.communicate(timeout=600) for one in groups]
    assert [one.returncode for one in groups] == [0, 0], told
    done = [[json.loads(line)["rows"] for line in out.splitlines()] for out, _ in told]
    assert [len(ranks) for ranks in done] == [2, 2]
    assert sum(map(sum, done)) >= 90  # more where one group helps the other at the end
    same_rows(tmp_path, "unlucky", monkeypatch)


def alone(ranks: int, cwd: Path, fault: str, *more: str) -> list[subprocess.Popen[str]]:
    """Start ranks without torchrun, which would stop the others before they could say anything."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    arguments = [f"{HERE / 'jobs.py'}:unlucky", "--store", "s.zarr", "--fsdp", "--device", "cpu"]
    where = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        subprocess.Popen(
            [sys.executable, *COMMAND, *arguments, *more],
            cwd=cwd,
            env=environment(**where, FAULT=fault, RANK=str(rank), LOCAL_RANK=str(rank)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(ranks)
    ]


def test_a_rank_that_fails_ends_all_with_its_error(tmp_path: Path) -> None:
    began = time.monotonic()
    ranks = alone(3, tmp_path, "fail 1 65")
    told = [one.communicate(timeout=120)[0] for one in ranks]
    assert time.monotonic() - began < 120
    assert all(one.returncode for one in ranks)
    error = "sample 65 cannot be read: OSError: the disk is broken (jobs.py, line 43)"
    assert error in " ".join(told[1].split())
    for rank in (0, 2):
        said = " ".join(told[rank].split())
        assert f"rank 1 failed: TrakStoreError: {error}" in said, told[rank]
    assert ts.open_store(tmp_path / "s.zarr").status()[0].written_blocks > 0


def wait_until_stopped(process: int) -> None:
    for _ in range(600):
        time.sleep(0.5)
        if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "T":
            return
    raise AssertionError("it was not stopped")


@pytest.mark.parametrize("stopped", [0, 2])
def test_a_rank_that_is_stopped_ends_the_others(tmp_path: Path, stopped: int) -> None:
    ranks = alone(3, tmp_path, f"stop {stopped} {60 + 4 * stopped}")
    try:
        wait_until_stopped(ranks[stopped].pid)
        began = time.monotonic()
        told = [one.communicate(timeout=100)[0] for one in ranks if one is not ranks[stopped]]
        assert time.monotonic() - began < 80  # on a busy machine, and a minute on another
    finally:
        for one in ranks:
            one.kill()
            one.communicate()
    assert [one.returncode for one in ranks if one is not ranks[stopped]] == [2, 2], told
    # They look for signs in a store of the first rank. One that ends takes the other with it.
    who = f"rank {stopped}" if stopped else "the first rank"
    assert any(f"{who} of the sharded model gave no sign of life for 3" in one for one in told), (
        told
    )
    assert all("what was committed is kept" in one for one in told), told
    assert ts.open_store(tmp_path / "s.zarr").status()[0].written_blocks > 0


def test_ranks_that_divide_layers_are_told_which_batch_one_of_them_can_take(tmp_path: Path) -> None:
    ranks = alone(2, tmp_path, "memory 1 45", "--tp", "2")
    told = [one.communicate(timeout=150)[0] for one in ranks]
    assert [one.returncode for one in ranks] == [2, 2], told
    expected = "memory does not suffice for 4 samples at once on this rank (no memory)"
    assert expected in told[1] and "give batch_size=2 (--batch-size 2)" in told[1]
    assert f"rank 1 failed: MemoryLimitError: {expected}" in told[0], told[0]


@pytest.mark.parametrize(("ranks", "more"), [(2, ()), (4, ("--tp", "2"))])
def test_weights_are_loaded_by_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: int, more: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    jobs.write_checkpoints()
    assert ran(ranks, "stored", tmp_path, *more) == 0
    same_rows(tmp_path, "stored", monkeypatch)

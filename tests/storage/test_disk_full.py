from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import trakstore as ts
from trakstore.cli import main
from trakstore.errors import LocationError
from trakstore.features import Job, featurize, featurize_job
from trakstore.storage.checking.verification import verify_store

SPEC = ts.ProjectionSpec("sjlt", dim=256)
X = np.random.default_rng(0).normal(size=(2048, 256)).astype(np.float32)  # 2 MiB
BLOCK = 128


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1.5 MiB of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1536k", "tmpfs", str(disk)]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount")
    if done.returncode:
        pytest.skip(f"cannot mount: {done.stderr!r}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def whole_blocks(where: Path) -> int:
    """Committed blocks, after a look that all of them, and nothing else, are sound and equal."""
    report = verify_store(where)
    assert report.ok and not report.leftovers, report
    store = ts.open_store(where)
    if 0 not in store.epochs or "train" not in store.splits_of(0):
        return 0
    split = store.split(0, "train")
    stored = split.column("features", allow_missing=True).read(0, split.rows)
    gone = set(split.missing_blocks())
    for block in range(split.spec.blocks):
        a, b = split.spec.block_range(block)
        if block in gone:
            assert np.isnan(stored[a:b]).all()
        else:
            np.testing.assert_array_equal(stored[a:b], X[a:b])
    return split.spec.blocks - len(gone)


def test_a_full_disk_is_one_clear_error_and_the_same_call_goes_on(small_disk: Path) -> None:
    where = small_disk / "s.zarr"
    store = ts.FeatureStore.create(where, projection=SPEC)
    filler = small_disk / "filler"
    filler.write_bytes(bytes(800_000))
    with pytest.raises(LocationError) as caught:
        store.write_split(0, "train", X, block_rows=BLOCK)
    done = whole_blocks(where)
    assert 0 < done < 16
    message = str(caught.value)
    assert "No space left on device" in message and "\n" not in message
    assert f"{done} of 16 blocks are committed and safe; free some space" in message
    filler.unlink()
    with pytest.raises(LocationError):  # it is full again, further on
        store.write_split(0, "train", X, block_rows=BLOCK)
    assert done < whole_blocks(where) < 16
    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    store.write_split(0, "train", X, block_rows=BLOCK)
    assert whole_blocks(where) == 16


def test_a_disk_that_is_full_from_the_start(small_disk: Path) -> None:
    (small_disk / "filler").write_bytes(bytes(os.statvfs(small_disk).f_bavail * 4096))
    with pytest.raises(LocationError, match="No space left on device"):
        ts.FeatureStore.create(small_disk / "s.zarr", projection=SPEC)


def test_featurize_goes_on_when_there_is_space_again(small_disk: Path) -> None:
    samples, labels = torch.from_numpy(X[:832, :64].copy()), torch.arange(832) % 5
    data = TensorDataset(samples, labels)
    torch.manual_seed(0)
    model = torch.nn.Linear(64, 5)

    def run(where: Path) -> Any:
        return featurize(model, data, where, projector=SPEC, block_rows=64, progress=False)

    filler = small_disk / "filler"
    filler.write_bytes(bytes(800_000))
    with pytest.raises(LocationError, match=r"[1-9] of 13 blocks are committed.*free some space"):
        run(small_disk / "s.zarr")
    assert verify_store(small_disk / "s.zarr").ok
    filler.unlink()
    assert 0 < run(small_disk / "s.zarr").blocks < 13
    run(small_disk.parent / "undisturbed.zarr")
    stores = small_disk / "s.zarr", small_disk.parent / "undisturbed.zarr"
    one, other = (ts.open_store(where).features(0, "train").values for where in stores)
    np.testing.assert_array_equal(one, other)


def test_a_store_that_lacks_splits_is_not_called_complete(
    small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wherever a disk is full while a job goes from split to split."""
    samples, labels = torch.from_numpy(X[:64, :8].copy()), torch.arange(64) % 5
    data = {split: TensorDataset(samples, labels) for split in ("train", "test")}
    spec, model = ts.ProjectionSpec("sjlt", dim=8), torch.nn.Linear(8, 5)
    job, said = Job(model, data, projector=spec, name="jobs.py:two"), []
    for left in range(4096, 400_000, 8192):
        where = small_disk / f"{left}.zarr"
        filler = small_disk / "filler"
        filler.write_bytes(bytes(os.statvfs(small_disk).f_bavail * 4096 - left))
        try:
            featurize_job(job, where, progress=False)
            break
        except LocationError:
            filler.unlink()
        if (where / "zarr.json").exists():
            assert main(["info", str(where)]) == 0
            said.append(capsys.readouterr().out.splitlines()[-1])
        shutil.rmtree(where, ignore_errors=True)
    assert not [line for line in said if line.startswith("complete")]
    assert any("test at epoch 0 is not begun; go on with" in line for line in said)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_at_any_instant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Every flush, of files and folders, fails once; each time the same call is started again."""
    calls, failing = 0, 0
    flush = os.fsync

    def fsync(handle: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(code, os.strerror(code))
        flush(handle)

    monkeypatch.setattr("trakstore.storage.backends.location.os.fsync", fsync)
    rows, failures = X[:5, :8], 0
    spec = ts.ProjectionSpec("sjlt", dim=8)
    for failing in range(1, 200):
        calls, where = 0, tmp_path / f"{failing}.zarr"
        try:
            ts.FeatureStore.create(where, projection=spec).write_split(
                0, "train", rows, block_rows=3
            )
            break
        except LocationError as error:
            assert os.strerror(code) in str(error)
            assert ("free some space" in str(error)) == (
                code != errno.EIO and "block" in str(error)
            )
            failures += 1
        if (where / "zarr.json").exists():
            report = verify_store(where)
            assert report.ok and not report.leftovers, (failing, report)
        split = ts.FeatureStore.create(where, projection=spec).write_split(
            0, "train", rows, block_rows=3
        )
        np.testing.assert_array_equal(split.column("features").read(0, 5), rows)
        assert verify_store(where).ok
    assert failures > 20

"""Micro-batches within a memory limit, and samples that are read ahead, also of the next block."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from features.models import ConvNet, Recurrent, Samples, mlp, seeded
from torch import Tensor, nn
from torch.utils.data import default_collate

import trakstore as ts
from trakstore.errors import MemoryLimitError, TrakStoreError
from trakstore.features import Job, featurize, featurize_job
from trakstore.features.background import ReadAhead
from trakstore.features.factorised import FactorisedEngine
from trakstore.features.footprint import peak_bytes

SJLT = ts.ProjectionSpec("sjlt", dim=32, seed=1)


def features(where: Path) -> Any:
    split = ts.open_store(where).split(0, "train")
    return split.column("features").read(0, split.rows)


def test_bytes_that_are_alive_at_once_are_counted() -> None:
    def run() -> None:
        a = torch.zeros(1000)
        for _ in range(3):
            b = a + 1  # the last one is dropped when the next one is there
            b.add_(1).view(10, 100)
        del a, b
        torch.zeros(500)

    assert peak_bytes(run) == 3 * 4000


def test_what_was_there_is_not_counted() -> None:
    layer, x = nn.Linear(100, 50), torch.zeros(2, 100)
    with torch.no_grad():
        assert peak_bytes(lambda: layer(x)) == 2 * 50 * 4


@pytest.mark.parametrize(
    ("make", "limit"),
    [
        (mlp, 20_500),
        (lambda: seeded(ConvNet), 30_000),
        (lambda: seeded(Recurrent), 30_000),
    ],
    ids=["mlp", "conv", "gru"],
)
def test_micro_batches_change_nothing_but_rounding(
    make: Any, limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data, sizes = make(), Samples(64), []
    options: dict[str, Any] = {"projector": SJLT, "batch_size": 32, "progress": False}
    featurize(model, data, tmp_path / "whole.zarr", **options)
    rows = FactorisedEngine.rows
    monkeypatch.setattr(
        FactorisedEngine, "rows", lambda self, b: sizes.append(len(b[0])) or rows(self, b)
    )
    featurize(model, data, tmp_path / "parts.zarr", memory_limit=limit, **options)
    expected = features(tmp_path / "whole.zarr")
    error = np.abs(features(tmp_path / "parts.zarr") - expected).max()
    assert error < 1e-5 * np.abs(expected).max()
    assert 2 < max(sizes) < 32, "the limit was felt"


def test_a_limit_in_which_no_sample_fits_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    with pytest.raises(MemoryLimitError, match=r"one sample at a time .* needs at least .* kB"):
        featurize(mlp(), Samples(64), tmp_path / "s.zarr", projector=SJLT, memory_limit="5kB")
    assert not (tmp_path / "s.zarr").exists()


def test_a_job_and_its_command_take_a_limit(tmp_path: Path) -> None:
    job = Job(mlp(), {"train": Samples(9)}, projector=SJLT, memory_limit="1GB")
    assert featurize_job(job, tmp_path / "s.zarr", progress=False).rows == 9
    with pytest.raises(MemoryLimitError, match="the memory limit is 99 B"):
        featurize_job(job, tmp_path / "t.zarr", memory_limit=99, progress=False)
    with pytest.raises(TrakStoreError, match="a size is a number of bytes"):
        Job(mlp(), {"train": Samples(9)}, memory_limit="many")


LIMITED = """
import sys, torch
import trakstore as ts
from torch import nn
from trakstore.features import featurize

class Images:
    def __len__(self):
        return 64
    def __getitem__(self, i):
        return torch.full((3, 32, 32), i / 64.0), i % 10

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024

layers = [nn.Conv2d(3, 48, 3, padding=1), nn.ReLU()]
for _ in range(4):
    layers += [nn.Conv2d(48, 48, 3, padding=1), nn.ReLU()]
model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10))
options = dict(projector=ts.ProjectionSpec("sjlt", dim=64), progress=False)
featurize(model, Images(), sys.argv[1] + "/warm.zarr", batch_size=4, memory_limit="1GB", **options)
before = peak()
featurize(model, Images(), sys.argv[1] + "/s.zarr", batch_size=64, memory_limit=LIMIT, **options)
print(peak() - before)
"""


@pytest.mark.slow
def test_the_limit_is_kept(tmp_path: Path) -> None:
    """The peak of fresh processes, above what torch took with batches of four."""
    limit, extra = 60_000_000, {}
    for given in (limit, None):
        script = LIMITED.replace("LIMIT", repr(given))
        command = [sys.executable, "-c", script, str(tmp_path / str(given))]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        extra[given] = int(done.stdout)
    assert extra[limit] < limit < extra[None], extra


def test_the_next_is_read_while_one_is_used_also_in_the_next_call() -> None:
    read: list[int] = []
    ahead = ReadAhead[int, int](lambda i: read.append(i) or i)  # type: ignore[func-returns-value]
    assert list(ahead.through([1, 2], then=3)) == [(1, 1), (2, 2)]
    assert list(ahead.through([3, 4], then=5)) == [(3, 3), (4, 4)]
    assert list(ahead.through([7])) == [(7, 7)], "another one than was expected"
    assert read == [1, 2, 3, 4, 5, 7]


@pytest.mark.parametrize(("block", "pieces"), [(8, 4), (20, 2 * 3), (3, 11)])
def test_every_batch_is_read_once_and_one_row_of_each_block_again(
    block: int, pieces: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    # A collator that is not known is called for some of these samples again.
    monkeypatch.setattr("trakstore.features.batches._is_known", lambda _: True)

    def collate(samples: list[tuple[Tensor, Tensor]]) -> Any:
        read.append(len(samples))
        return default_collate(samples)

    options: dict[str, Any] = {"projector": SJLT, "batch_size": 8, "progress": False}
    featurize(mlp(), Samples(32), tmp_path / "s.zarr", collate=collate, block_rows=block, **options)
    assert read[:2] == [8, 8], "whether the collator gives the same twice"
    assert read[2:5] == [2, 2, 1], "the samples that are tried first, one of them compared"
    blocks = -(-32 // block)  # of each of which one row is read again, to be compared
    assert len(read[5:]) == pieces - (block == 20) + blocks and sum(read[5:]) == 32 + blocks

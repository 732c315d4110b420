"""What is added to a stored split is told: rows, blocks, bytes and time."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from features.models import Samples, mlp

import trakstore as ts
from trakstore.features import Featurized, Job, featurize, featurize_job


class First(Samples):
    def __init__(self, count: int) -> None:
        super().__init__(40)
        self.count = count

    def __len__(self) -> int:
        return self.count


def test_the_rows_that_were_added_are_told(tmp_path: Path) -> None:
    options: dict[str, Any] = {"projector": ts.ProjectionSpec("sjlt", dim=32), "progress": False}

    def done(count: int, **more: Any) -> Featurized:
        return featurize(mlp(), First(count), tmp_path / "s.zarr", **options, **more)

    first = done(23, block_rows=8)
    assert (first.rows, first.blocks) == (23, 3)
    # Rows 23 to 29: the third block is written again, with one row more, and a fourth one.
    second = done(30, append=True)
    assert (second.rows, second.blocks) == (7, 2)
    assert second.bytes * first.rows == first.bytes * second.rows
    assert 0 < second.spent.computing <= second.seconds
    # Whole blocks behind whole ones, and then nothing.
    assert [done(n, append=True).rows for n in (32, 40, 40)] == [2, 8, 0]
    assert ts.open_store(tmp_path / "s.zarr").split(0, "train").rows == 40


class Slow(First):
    def __getitem__(self, i: int) -> Any:
        time.sleep(0.03)
        return super().__getitem__(i)


def test_the_time_of_adding_is_no_preparation(tmp_path: Path) -> None:
    job = Job(mlp(), {"train": First(5)}, projector=ts.ProjectionSpec("sjlt", dim=32))
    featurize_job(job, tmp_path / "s.zarr", progress=False)
    job = replace(job, datasets={"test": First(5), "train": Slow(35)}, append=True)
    done = featurize_job(job, tmp_path / "s.zarr", progress=False)
    # Blocks of five rows, of as many as there were at first.
    assert (done.rows, done.blocks) == (5 + 30, 1 + 6)
    assert done.spent.computing > 30 * 0.03 > done.prepared.store

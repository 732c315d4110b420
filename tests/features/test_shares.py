"""Shares of workers: what is said of rows that two of them wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from features.models import Samples, mlp

import trakstore as ts
from trakstore.cli.featurize import _twice
from trakstore.features import Featurized, featurize
from trakstore.storage.opening import find_store

ROWS, BLOCK = 24, 12


class Meanwhile(Samples):
    """Samples of which one, when it is read for its block, is waited for until others have gone on."""

    def __init__(self, store: Path, row: int, others: Callable[[], None]) -> None:
        super().__init__(ROWS)
        self.store, self.row, self.others = store, row, others
        self.reading = False

    def __getitem__(self, index: int) -> Any:
        there = find_store(self.store)
        if index == self.row and not self.reading and there is not None and there.epochs:
            self.reading = True
            self.others()
        return super().__getitem__(index)


def write(data: Any, store: Path, rank: int) -> Featurized:
    projector = ts.ProjectionSpec("sjlt", dim=16)
    options: dict[str, Any] = {"block_rows": BLOCK, "batch_size": 4, "progress": False}
    return featurize(mlp(), data, store, rank=rank, world_size=2, projector=projector, **options)


@pytest.mark.parametrize(
    ("rank", "overtaken", "repeated"), [(0, BLOCK, 0), (1, 0, BLOCK)], ids=["owner", "helper"]
)
def test_rows_that_another_worker_committed_first_are_told(
    tmp_path: Path, rank: int, overtaken: int, repeated: int
) -> None:
    store = tmp_path / "s"
    other: list[Featurized] = []
    # The first block is rank 0's. While it is read there, or by rank 1 that helps, the other writes it.
    data = Meanwhile(store, 5, lambda: other.append(write(Samples(ROWS), store, 1 - rank)))
    done = write(data, store, rank)
    assert len(other) == 1 and (other[0].overtaken, other[0].repeated) == (0, 0)
    assert (done.overtaken, done.repeated) == (overtaken, repeated)
    assert done.rows + other[0].rows == ROWS + BLOCK
    assert (done + done).overtaken == 2 * overtaken and (done + done).repeated == 2 * repeated

    alone = tmp_path / "alone"
    featurize(
        mlp(), Samples(ROWS), alone, projector=ts.ProjectionSpec("sjlt", dim=16), progress=False
    )
    got, wanted = (
        ts.open_store(one).split(0, "train").column("features").read(0, ROWS)
        for one in (store, alone)
    )
    torch.testing.assert_close(torch.from_numpy(got), torch.from_numpy(wanted))

    said = _twice(done, rank, 2)
    assert said.startswith(f"rank {rank} of 2: 12 rows of these were written twice: ")
    assert ("another worker, which had finished its own share" in said) == (rank == 0)
    assert ("this worker helped" in said) == (rank == 1)
    assert said.count("\n") == 1


def test_nothing_is_said_of_workers_that_did_not_meet(tmp_path: Path) -> None:
    done = [write(Samples(ROWS), tmp_path / "s", rank) for rank in (0, 1)]
    # The first helps with all that the other, which comes later, has not begun.
    assert [one.rows for one in done] == [ROWS, 0]
    assert [_twice(one, rank, 2) for rank, one in enumerate(done)] == ["", ""]

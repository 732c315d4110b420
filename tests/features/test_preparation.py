"""Preparing a split: what the first worker says of it, and how long its parts took."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from features.models import Samples, mlp

import trakstore as ts
from trakstore import progress
from trakstore.features import featurize
from trakstore.features.preparation import PARTS, Preparation, Stopwatch
from trakstore.features.spent import Spent


class Slow(Samples):
    """Samples whose reading takes a while."""

    def __getitem__(self, index: int) -> Any:
        time.sleep(0.01)
        return super().__getitem__(index)


def test_the_first_worker_says_what_it_prepares(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_SECONDS", 0.02)
    projector = ts.ProjectionSpec("sjlt", dim=16)
    for rank in (0, 1):
        where = tmp_path / str(rank)
        featurize(mlp(), Slow(40), where, rank=rank, world_size=2, projector=projector)
        said = capsys.readouterr().err
        told = "preparing train at epoch 0: fingerprint of the samples, " in said
        assert told if rank == 0 else not said


def test_parts_are_told_as_they_begin_and_add_up() -> None:
    said: list[str] = []
    clock = Stopwatch(said.append)
    assert said == ["hash of the weights"]
    time.sleep(0.01)
    clock.lap("weights")
    clock.lap("samples")
    clock.lap("store")  # the last part: nothing is said after it
    assert said == [PARTS["weights"], PARTS["samples"], PARTS["passes"]]
    measured = clock.measured
    assert measured.weights >= 0.01 and measured.passes == 0
    assert (measured + Preparation(weights=1, store=2)).total == pytest.approx(measured.total + 3)
    assert Spent(reading=3, writing=1) - Spent(reading=1) == Spent(reading=2, writing=1)
    assert list(PARTS) == list(Preparation.__dataclass_fields__)

"""Two epochs with the same weights are named in the log, once."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from features.models import Samples, mlp

from trakstore.features import Job, featurize, featurize_job

SPLITS = {"train": Samples(8), "test": Samples(4, seed=1)}


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    caplog.clear()
    return [one.partition(":")[0].partition(" (")[0] for one in told]


def test_epochs_of_a_job(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    states: Any = {1: mlp(1), 5: mlp(5), 10: mlp(1), "final": mlp(1)}
    states = {epoch: one.state_dict() for epoch, one in states.items()}
    job = Job(mlp(), SPLITS, checkpoints=states)
    featurize_job(job, tmp_path / "s", progress=False)
    same = "have the same weights"
    pairs = ["epochs 1 and 10", "epochs 1 and final", "epochs 10 and final"]
    assert warned(caplog) == [f"{pair} {same}" for pair in pairs]
    featurize_job(job, tmp_path / "s", progress=False)
    assert warned(caplog) == []


def test_a_model_that_was_not_given_other_weights(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for epoch, model in ((1, mlp(1)), (2, mlp(2))):
        for split, data in SPLITS.items():
            featurize(model, data, tmp_path / "s", epoch=epoch, split=split, progress=False)
    assert warned(caplog) == []
    featurize(mlp(1), SPLITS["train"], tmp_path / "s", epoch=3, rank=0, world_size=1)
    assert warned(caplog) == ["epochs 1 and 3 have the same weights"]
    featurize(mlp(2), SPLITS["test"], tmp_path / "s", epoch=4, split="test", rank=1, world_size=2)
    assert warned(caplog) == []  # another worker says it

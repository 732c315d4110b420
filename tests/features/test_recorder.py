"""What a recorder takes in, of loops as people run them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trakstore.analysis.training_dynamics import training_dynamics
from trakstore.errors import TrakStoreError
from trakstore.features.recorder import TrainingRecorder

LABELS, RIGHT = torch.tensor([0, 1]), torch.tensor([[9.0, 0.0], [0.0, 9.0]])
WRONG = RIGHT.flip(1)


def recorder(where: Path, **more: Any) -> TrainingRecorder:
    return TrainingRecorder(where, **{"split": "train", "rank": 0, "save_interval": 1, **more})


def columns(where: Path, *names: str) -> dict[str, list[Any]]:
    found = training_dynamics(where)
    return {name: found[name].values.tolist() for name in names}


def test_a_loop_may_write_over_its_tensors(tmp_path: Path) -> None:
    logits, targets, ids = RIGHT.clone(), LABELS.clone(), np.array([0, 1])
    with recorder(tmp_path / "d") as one:
        one.add(0, ids, targets, logits)
        logits.copy_(WRONG)
        ids += 2
        one.add(0, ids, targets, logits)
        logits.zero_(), targets.zero_(), ids.fill(7)
    assert columns(tmp_path / "d", "sample_id", "correctness") == {
        "sample_id": [0, 1, 2, 3],
        "correctness": [1, 1, 0, 0],
    }


@pytest.mark.parametrize("logits", [(RIGHT, WRONG), (WRONG, RIGHT)])
@pytest.mark.parametrize("stored", [False, True])
def test_the_last_record_of_a_sample_and_epoch_counts(
    tmp_path: Path, logits: tuple[torch.Tensor, torch.Tensor], stored: bool
) -> None:
    with recorder(tmp_path / "d") as one:
        for batch in logits:
            one.add(0, [5, 6], LABELS, batch)
            if stored:  # a part of its own
                one.save()
    last = int(logits[1] is RIGHT)
    assert columns(
        tmp_path / "d", "correctness", "first_learned", "epochs", "forgetting_events"
    ) == {
        "correctness": [last] * 2,
        "first_learned": [last - 1] * 2,
        "epochs": [1, 1],
        "forgetting_events": [0, 0],
    }


def test_epochs_of_ranks_are_taken_in_order(tmp_path: Path) -> None:
    """A sampler that shuffles gives a sample to another rank at each epoch."""
    ranks = [recorder(tmp_path / "d", rank=rank, save_interval=9) for rank in (0, 1)]
    for epoch, logits in enumerate([WRONG, RIGHT, RIGHT, WRONG]):
        ranks[epoch % 2].add(epoch, [3, 4], LABELS, logits)
    for one in ranks:
        one.close()
    found = columns(tmp_path / "d", "first_learned", "forgetting_events", "epochs", "loss")
    assert found["first_learned"] == [1, 1] and found["forgetting_events"] == [1, 1]
    assert found["epochs"] == [4, 4] and found["loss"] == pytest.approx([9, 9], rel=1e-4)


@pytest.mark.parametrize("interval", [1, 9])
def test_a_loop_that_is_run_again_replaces_what_it_does_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, interval: int
) -> None:
    one = recorder(tmp_path / "d", save_interval=interval, samples=2)
    for epoch, logits in [(0, WRONG), (1, RIGHT), (2, RIGHT), (1, WRONG)]:
        one.add(epoch, [0, 1], LABELS, logits)
    one.close()
    assert "epoch 1 came after epoch 2: training began again" in caplog.text
    found = columns(tmp_path / "d", "epochs", "forgetting_events", "correctness")
    assert found == {"epochs": [2, 2], "forgetting_events": [0, 0], "correctness": [0, 0]}
    with recorder(tmp_path / "d", samples=2) as later:  # counts after both
        later.add(0, [0, 1], LABELS, RIGHT)
    assert columns(tmp_path / "d", "epochs", "correctness") == {
        "epochs": [1, 1],
        "correctness": [1, 1],
    }


def test_logits_that_hold_nan_are_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with recorder(tmp_path / "d") as one:
        for epoch, logits in enumerate([RIGHT, RIGHT * torch.nan, RIGHT * torch.nan]):
            one.add(epoch, [0, 1], LABELS, logits)
    assert caplog.text.count("logits of 2 samples hold NaN, up to epoch 1") == 1
    assert caplog.text.count("hold NaN") == 1
    found = columns(tmp_path / "d", "first_learned", "correctness", "forgetting_events")
    assert found["first_learned"] == [0, 0] and found["forgetting_events"] == [1, 1]
    assert found["correctness"] == pytest.approx([1 / 3] * 2)


@pytest.mark.parametrize("epoch", [-1, "1", 0.5])
def test_what_is_no_epoch_is_refused_at_once(tmp_path: Path, epoch: Any) -> None:
    with recorder(tmp_path / "d") as one:
        one.add(0, [0, 1], LABELS, RIGHT)
        with pytest.raises(TrakStoreError, match="epoch must be an integer, 0 or more, got"):
            one.add(epoch, [0, 1], LABELS, RIGHT)
    assert columns(tmp_path / "d", "epochs") == {"epochs": [1, 1]}


def test_ids_of_one_split_are_of_one_kind(tmp_path: Path) -> None:
    with recorder(tmp_path / "d") as one:
        one.add(0, [0, 1], LABELS, RIGHT)
        with pytest.raises(TrakStoreError, match=r"ids are text, and those of .train. .* integers"):
            one.add(0, ["a", "b"], LABELS, RIGHT)
    with recorder(tmp_path / "d") as later:
        with pytest.raises(TrakStoreError, match="give these another split= or store="):
            later.add(1, ["a", "b"], LABELS, RIGHT)
        later.add(1, np.array([], dtype=str), LABELS[:0], RIGHT[:0])  # no ids of any kind
        later.add(1, [0, 1], LABELS, RIGHT)
    assert columns(tmp_path / "d", "epochs") == {"epochs": [2, 2]}


def test_records_with_ids_of_two_kinds_are_named(tmp_path: Path) -> None:
    ranks = [recorder(tmp_path / "d", rank=rank) for rank in (0, 1)]  # neither sees the other's
    for one, ids in zip(ranks, ([0, 1], ["a", "b"]), strict=True):
        one.add(0, ids, LABELS, RIGHT)
        one.close()
    with pytest.raises(
        TrakStoreError, match=r"by integers in dynamics/train/.* and by text in dyn"
    ):
        training_dynamics(tmp_path / "d")


def test_ids_are_counted_over_all_epochs(tmp_path: Path) -> None:
    one = recorder(tmp_path / "d", samples=2)
    one.add(0, [0, 1], LABELS, RIGHT)
    one.add(1, [2, 3], LABELS, RIGHT)
    with pytest.raises(TrakStoreError, match="more than 2 ids, the size of the data set"):
        one.close()

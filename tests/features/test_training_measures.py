"""Measures of a batch: right ones of what loops hand over, and an error for what has none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from trakstore.errors import TrakStoreError
from trakstore.features.training_measures import RIGHT, measure_batch, need_classes

LABELS, LOGITS = torch.tensor([0, 1]), torch.tensor([[2.0, 0.0], [1.0, 0.0]])


def test_of_two_classes() -> None:
    p = np.exp([2.0, 0.0]) / (np.exp([2.0, 1.0]) + 1)
    el2n = np.sqrt(2) * (1 - p)
    wanted = np.stack([-np.log(p), p, [1, 0], [2, -1], el2n], axis=1)
    np.testing.assert_allclose(measure_batch(LABELS, LOGITS), wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("targets", "logits"),
    [
        (LABELS.int(), LOGITS.bfloat16()),
        (LABELS.numpy().astype(np.uint8), LOGITS.numpy()),
        ([0, 1], LOGITS.tolist()),
    ],
)
def test_of_other_kinds_of_arrays(targets: Any, logits: Any) -> None:
    torch.testing.assert_close(measure_batch(targets, logits), measure_batch(LABELS, LOGITS))


@pytest.mark.parametrize(
    "losses", [torch.tensor([[5.0], [6.0]]), [5.0, 6.0], np.array([5.0, 6.0]), torch.tensor([5, 6])]
)
def test_losses_of_each_sample(losses: Any) -> None:
    assert measure_batch(LABELS, LOGITS, losses)[:, 0].tolist() == [5, 6]


def test_a_mean_is_no_loss_of_its_samples() -> None:
    wanted = torch.nn.functional.cross_entropy(LOGITS, LABELS, reduction="none")
    torch.testing.assert_close(measure_batch(LABELS, LOGITS, wanted.mean())[:, 0], wanted)


@pytest.mark.parametrize("shape", [(3,), (1,), (1, 2), (2, 2)])
def test_losses_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(TrakStoreError, match=r'shape \(2,\), one for each.*reduction="none"'):
        measure_batch(LABELS, LOGITS, torch.ones(shape))


def test_nothing_was_predicted_by_logits_that_hold_nan() -> None:
    nan = float("nan")
    logits = torch.tensor([[nan, nan], [1.0, nan], [nan, 0.0], [0.0, -torch.inf]])
    measures = measure_batch([0, 0, 1, 0], logits)
    assert measures[:, RIGHT].tolist() == [0, 0, 0, 1]
    assert measures[:3, 1].isnan().all()


@pytest.mark.parametrize(
    ("targets", "logits", "message"),
    [
        ([0, -100], LOGITS, "targets must be classes from 0 to 1, .* got -100: leave samples"),
        ([0, 9], LOGITS, "classes from 0 to 1, .* got 9"),
        (LABELS.float(), LOGITS, "targets must be integers, .* got torch.float32"),
        (LABELS.bool(), LOGITS, "targets must be integers, .* got torch.bool"),
        (LABELS, LOGITS[:, :1], "needed logits of 2 classes or more, got 1: for a single logit"),
        (LABELS, LOGITS[0], r"needed logits \(batch, classes\)"),
        (["a", "b"], LOGITS, r"targets must be a tensor or an array, got \['a', 'b'\]"),
        (LABELS, None, "logits must be a tensor or an array, got None"),
    ],
)
def test_refusals(targets: Any, logits: Any, message: str) -> None:
    with pytest.raises(TrakStoreError, match=message):
        measure_batch(targets, logits)


def test_targets_on_a_gpu_are_looked_at_later() -> None:
    measures = measure_batch(LABELS, LOGITS)
    need_classes(measures, np.array([3, 4]))
    measures[1, RIGHT] = torch.nan
    with pytest.raises(TrakStoreError, match="1 targets, the first at epoch 4, are none of the"):
        need_classes(measures, np.array([3, 4]))

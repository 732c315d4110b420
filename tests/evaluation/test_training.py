from __future__ import annotations

import json
import logging
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from trakstore.errors import TrakStoreError
from trakstore.evaluation.training import SubsetTrainer
from trakstore.sampling import SubsetPlan

generator = torch.Generator().manual_seed(0)
images = torch.randn(48, 1, 6, 6, generator=generator)
labels = (images.mean((1, 2, 3)) > 0).long()
train, targets = TensorDataset(images, labels), TensorDataset(images[:7] + 0.1, labels[:7])
plan = SubsetPlan(48, seed=3)


def plain() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2))


def with_batch_norm() -> nn.Module:
    """A bias before it would have gradients of rounding errors, which Adam makes steps of."""
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, 2)
    )


class Looks(nn.Module):
    """Looks at its values, as ``vmap`` cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(36, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(x.flatten(1))
        return logits * 2 if float(logits.detach().sum()) > 1e9 else logits


def optimisers() -> list[Any]:
    return [
        partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-3),
        partial(torch.optim.AdamW, lr=0.01),
    ]


def by_hand(
    make: Any, mask: Any, seed: int, optimizer: Any, epochs: int, size: int, schedule: Any = None
) -> Any:
    """One model by the loop that everyone writes."""
    torch.manual_seed(seed)
    model = make().train()
    steps, rng = optimizer(model.parameters()), np.random.default_rng(seed)
    rates = schedule and schedule(steps)
    for _ in range(epochs):
        for at in torch.from_numpy(rng.permutation(np.flatnonzero(mask))).split(size):
            steps.zero_grad()
            F.cross_entropy(model(images[at]), labels[at]).backward()
            steps.step()
            if rates is not None:
                rates.step()
    with torch.no_grad():
        logits = model.eval()(images[:7] + 0.1)
    own = logits.gather(1, labels[:7, None])[:, 0]
    return (own - (logits.sum(1) - own)).numpy(), logits.argmax(1).numpy()


@pytest.mark.parametrize("make", [plain, with_batch_norm, Looks])
@pytest.mark.parametrize("optimizer", optimisers(), ids=["sgd", "adamw"])
def test_each_is_what_it_would_be_alone(make: Any, optimizer: Any, caplog: Any) -> None:
    trainer = SubsetTrainer(make, train, targets, epochs=4, batch_size=10, optimizer=optimizer)
    masks, seeds = plan.masks(0, 5), plan.seeds(0, 5)
    masks[1, np.flatnonzero(masks[1])[:3]] = False  # one of another size
    with caplog.at_level(logging.WARNING, logger="trakstore"):
        found = trainer(masks, seeds)
    assert found.output.dtype == np.float32
    assert found.predicted is not None
    assert ("one after the other" in caplog.text) == (make is Looks)
    for i in range(5):
        output, predicted = by_hand(make, masks[i], int(seeds[i]), optimizer, 4, 10)
        np.testing.assert_allclose(found.output[i], output, rtol=1e-3, atol=1e-3)
        np.testing.assert_array_equal(found.predicted[i], predicted)
    assert np.ptp(found.output, axis=0).min() > 0.01  # they are different models


def test_a_schedule_steps_with_each_batch() -> None:
    def falling(optimizer: Any, steps: int = 6) -> Any:
        assert steps == 2 * 3  # epochs and batches of 24 rows
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)

    trainer = SubsetTrainer(plain, train, targets, epochs=2, batch_size=10, schedule=falling)
    masks, seeds = plan.masks(0, 2), plan.seeds(0, 2)
    found, sgd = trainer(masks, seeds), partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    for i in range(2):
        told = [by_hand(plain, masks[i], int(seeds[i]), sgd, 2, 10, s)[0] for s in (falling, None)]
        np.testing.assert_allclose(found.output[i], told[0], rtol=1e-4, atol=1e-5)
        assert np.abs(told[0] - told[1]).max() > 0.01


def test_what_a_trainer_tells_of_itself() -> None:
    def told(**other: Any) -> Any:
        given = {"epochs": 4, "optimizer": partial(torch.optim.AdamW, lr=0.01, betas=(0.9, 0.99))}
        return SubsetTrainer(
            **{"make_model": plain, **given, **other}, train=train, targets=targets
        )

    first = told().to_dict()
    assert first == told().to_dict() == json.loads(json.dumps(first))
    assert first["optimizer"] == {
        "name": "AdamW", "arguments": [], "lr": 0.01, "betas": [0.9, 0.99]
    }  # fmt: skip
    others: dict[str, Any] = {
        "epochs": 5,
        "batch_size": 32,
        "output": "cross_entropy",
        "optimizer": partial(torch.optim.AdamW, lr=0.02, betas=(0.9, 0.99)),
        "schedule": partial(torch.optim.lr_scheduler.StepLR, gamma=np.float32(0.5)),
    }
    for name, value in others.items():
        changed = told(**{name: value}).to_dict()
        assert {key for key in first if first[key] != changed[key]} == {name}
        json.dumps(changed, allow_nan=False)
    assert told(make_model=with_batch_norm).to_dict()["model"] != first["model"]


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    SubsetTrainer(plain, train, targets, epochs=1)(plan.masks(0, 2), plan.seeds(0, 2))
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.parametrize("masks", [np.ones((2, 40), bool), np.zeros((2, 48), bool)])
def test_other_rows_are_refused(masks: Any) -> None:
    with pytest.raises(TrakStoreError, match="subsets of 48 train rows, none empty"):
        SubsetTrainer(plain, train, targets)(masks, np.arange(2))


def test_a_fault_of_the_model_comes_up() -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        SubsetTrainer(lambda: nn.Linear(5, 2), train, targets)(plan.masks(0, 2), np.arange(2))

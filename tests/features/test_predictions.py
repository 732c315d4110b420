"""What a job's model says: the argmax of its logits, and clear words where it cannot be asked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from features.models import Samples, mlp
from torch import Tensor, nn

from trakstore.errors import TrakStoreError
from trakstore.features import Job
from trakstore.features.predictions import predicted_classes

ROWS = np.array([8, 0, 3, 5, 1])


class Broken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, _: Tensor) -> Tensor:
        raise RuntimeError("no kernel image\nand more")


def test_classes_are_those_of_the_largest_logits() -> None:
    data, states = Samples(9), {epoch: mlp(seed=epoch).state_dict() for epoch in (1, 2)}
    job = Job(mlp().train(), {"test": data}, checkpoints=states, batch_size=2)
    inputs = torch.stack([data[row][0] for row in ROWS])
    for epoch in (1, 2):
        wanted = mlp(seed=epoch).eval()(inputs).argmax(1)
        found = predicted_classes(job, epoch, "test", ROWS)
        np.testing.assert_array_equal(found, wanted)
    assert job.model.training


def test_a_class_is_that_of_the_sample_alone() -> None:
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mlp(seed=1)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.inner(x - x.mean(0) if len(x) > 1 else x)
            return out

    data, model = Samples(9), Centred().eval()
    job = Job(model, {"test": data}, batch_size=5)
    alone = [int(model(data[row][0][None]).argmax()) for row in ROWS]
    together = model(torch.stack([data[row][0] for row in ROWS])).argmax(1)
    assert together.tolist() != alone
    np.testing.assert_array_equal(predicted_classes(job, 0, "test", ROWS), alone)


def test_no_weights_are_read_where_there_are_no_classes() -> None:
    job = Job(mlp(), {"test": Samples(9)}, "squared_error", checkpoints={1: "not-there.pt"})
    assert predicted_classes(job, 1, "test", ROWS) is None


def test_a_model_that_fails_here() -> None:
    job = Job(Broken(), {"test": Samples(9)})
    with pytest.raises(TrakStoreError, match=r"does not run here, on the CPU: no kernel image$"):
        predicted_classes(job, 0, "test", ROWS)

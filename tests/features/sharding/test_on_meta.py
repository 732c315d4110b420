"""Models that are built without numbers."""

from __future__ import annotations

import pytest
import torch
from features.sharding.language_models import Gpt
from torch import Tensor, nn

from trakstore.errors import TrakStoreError
from trakstore.features import Job
from trakstore.features.sharding import built_on_meta, with_memory


class Turning(nn.Module):
    """Model with a buffer that no checkpoint holds."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.ones(4))
        self.register_buffer("frequencies", 1.0 / torch.arange(1, 5), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_parameters_take_no_memory_and_buffers_have_their_numbers() -> None:
    model = built_on_meta(Turning)
    assert all(one.is_meta for one in model.parameters())
    torch.testing.assert_close(model.frequencies, 1.0 / torch.arange(1, 5))
    with_memory(model, torch.device("cpu"))
    assert not any(one.is_meta for one in model.parameters())
    torch.testing.assert_close(model.frequencies, 1.0 / torch.arange(1, 5))


def test_tied_parameters_stay_one() -> None:
    model = built_on_meta(Gpt)
    assert model.head.weight is model.words.weight
    with_memory(model, torch.device("cpu"))
    assert model.head.weight is model.words.weight


def test_what_cannot_be_built_is_refused() -> None:
    with pytest.raises(TrakStoreError, match="it gave a int"):
        built_on_meta(lambda: 3)
    with pytest.raises(TrakStoreError, match="give checkpoints= that hold them"):
        Job(Gpt, {"train": [1]})  # type: ignore[arg-type]

    class Unfilled(nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 2)
            self.register_buffer("table", torch.empty(3))

    with pytest.raises(TrakStoreError, match=r"the buffer table .* has no numbers"):
        with_memory(built_on_meta(Unfilled), torch.device("cpu"))

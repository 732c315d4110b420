"""Models that are built without numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from features.sharding.language_models import Gpt
from torch import Tensor, nn

from trakstore.errors import TrakStoreError
from trakstore.features import Job
from trakstore.features.sharding import built_on_meta, unloaded, with_memory


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
        built_on_meta(Unfilled)


def test_tensors_that_are_no_parameters_are_refused_without_numbers() -> None:
    class Masked(nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 2)
            self.masks = {"causal": [torch.empty(2, 2).fill_(1.0).triu()]}

    with pytest.raises(TrakStoreError, match=r"the tensor 0\.masks .* has no numbers"):
        built_on_meta(lambda: nn.Sequential(Masked()))
    # A list of its parameters is another name for these.
    assert all(one.is_meta for one in built_on_meta(lambda: nn.LSTM(2, 3)).parameters())


def _states() -> dict[int, dict[str, Tensor]]:
    return {epoch: nn.Linear(2, 2).state_dict() for epoch in (1, 2)}


def test_a_job_gives_memory_to_what_it_loads_and_has_no_weights_afterwards() -> None:
    states = _states()
    job = Job(lambda: nn.Linear(2, 2), {"train": [1]}, checkpoints=states)  # type: ignore[arg-type]
    with job.lent():
        for epoch in (1, 2):
            torch.testing.assert_close(job.load(epoch).weight.data, states[epoch]["weight"])
        assert unloaded(job.model) == []
    assert unloaded(job.model) == ["weight", "bias"]


def test_an_adapter_needs_loaded_weights_to_adapt() -> None:
    peft = pytest.importorskip("peft")

    def adapted() -> nn.Module:
        torch.manual_seed(0)
        settings = peft.LoraConfig(r=1, target_modules=["0"], init_lora_weights=False)
        model: nn.Module = peft.get_peft_model(nn.Sequential(nn.Linear(2, 2)), settings)
        return model

    whole = {name: one.clone() for name, one in adapted().state_dict().items()}
    adapter = peft.get_peft_model_state_dict(adapted(), save_embedding_layers=False)
    job = Job(adapted, {"train": [1]}, checkpoints={1: adapter, 2: whole})  # type: ignore[arg-type]
    refused = pytest.raises(TrakStoreError, match=r"checkpoint 1 is an adapter.*the module itself")
    with job.lent(), refused:
        job.load(1)
    with job.lent():
        loaded = job.load(2).state_dict()
        assert all(torch.equal(loaded[name], whole[name]) for name in whole)
    with job.lent(), refused:  # weights of epoch 2 are no base of epoch 1
        job.load(1)
    own = Job(adapted(), {"train": [1]}, checkpoints={1: adapter})
    with own.lent():
        loaded = own.load(1).state_dict()
        assert all(torch.equal(loaded[name], whole[name]) for name in whole)


def test_a_parameter_that_a_checkpoint_leaves_out_is_named() -> None:
    class Hiding(nn.Linear):
        """Layer whose state dict lacks a parameter."""

        def __init__(self) -> None:
            super().__init__(2, 2)
            self.shift = nn.Parameter(torch.ones(2))

        def state_dict(self, **options: Any) -> Any:  # type: ignore[override]
            whole = super().state_dict(**options)
            del whole["shift"]
            return whole

    job = Job(Hiding, {"train": [1]}, checkpoints=_states())  # type: ignore[arg-type]
    with job.lent(), pytest.raises(TrakStoreError, match="has no weights for shift"):
        job.load(1)

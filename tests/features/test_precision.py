"""Autocast reaches the model however an output uses it, and nothing that is made of its answers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from trakstore.features.outputs import CausalLM, ModelOutput, as_output
from trakstore.features.outputs.sequences import sequences
from trakstore.features.precision import Autocast, are_tf32, matrix_products

CPU = torch.device("cpu")


class Flow(nn.Module):
    """Numbers that bfloat16 rounds, in a forward, a method and parts."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.scale = nn.Linear(6, 5), 2.0
        self.parts = nn.ModuleList(nn.Linear(6, 5) for _ in range(2))
        self.named = nn.ModuleDict({"a": nn.Linear(6, 5)})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"z": self.first(x)}

    def log_prob(self, x: Tensor) -> Tensor:
        return -(self.first(x) ** 2).sum(1)

    def part(self, at: int) -> nn.Module:
        return self.parts[at]


USES: dict[str, Any] = {
    "call": lambda m, x: m(x)["z"],
    "method": lambda m, x: m.log_prob(x)[:, None],
    "part": lambda m, x: m.first(x),
    "listed part": lambda m, x: m.parts[1](x),
    "parts in turn": lambda m, x: torch.stack([one(x) for one in m.parts]).sum(0),
    "sliced parts": lambda m, x: m.parts[1:][0](x) * len(m.parts),
    "children": lambda m, x: next(iter(m.children()))(x),
    "values": lambda m, x: dict(m.named.items())["a"](x) + m.named["a"](x),
    "a part that is given": lambda m, x: m.part(0)(x),
    "part of a part": lambda m, x: m.get_submodule("parts").get_submodule("1")(x),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_every_use_is_cast_and_answers_in_float32(use: Any) -> None:
    torch.manual_seed(0)
    model, x = Flow(), torch.randn(4, 6)
    seen: list[Tensor] = []

    def output(given: Any, batch: Any) -> Tensor:
        seen.append(use(given, batch[0]))
        return (seen[-1] @ torch.full((seen[-1].shape[1], 1), 1 / 3))[:, 0] * given.scale

    found = Autocast(as_output(output), CPU)(model, (x,))
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        wanted = use(model, x)
    assert seen[0].dtype == torch.float32
    torch.testing.assert_close(seen[0], wanted.float(), rtol=0, atol=0.02)
    assert not torch.equal(seen[0], use(model, x))  # float32 all the way
    exact = (seen[0] @ torch.full((seen[0].shape[1], 1), 1 / 3))[:, 0] * 2
    torch.testing.assert_close(found.output, exact, rtol=0, atol=0)


def test_it_passes_for_the_model() -> None:
    model = Flow()

    def output(given: Any, batch: Any) -> Tensor:
        assert isinstance(given, Flow) and isinstance(given.parts, nn.ModuleList)
        assert given and {id(p) for p in given.parameters()} == {id(p) for p in model.parameters()}
        assert given.first.weight is model.first.weight
        assert not hasattr(given, "missing")
        given.scale = 3.0
        return given.log_prob(batch[0])

    Autocast(as_output(output), CPU)(model, (torch.randn(2, 6),))
    assert model.scale == 3.0


def test_gradients_of_single_samples_through_a_method() -> None:
    torch.manual_seed(0)
    output = Autocast(as_output(lambda m, b: m.log_prob(b[0])), CPU)

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = Flow()

        def forward(self, x: Tensor) -> Tensor:
            return output(self.model, (x,)).output

    whole, x = Whole(), torch.randn(3, 6)
    weights = {name: p.detach() for name, p in whole.named_parameters()}
    one = grad(lambda given, row: functional_call(whole, given, (row[None],))[0])
    found = vmap(one, in_dims=(None, 0))(weights, x)["model.first.weight"]
    for row in range(3):
        wanted = torch.autograd.grad(whole(x[row : row + 1]).sum(), whole.model.first.weight)[0]
        torch.testing.assert_close(found[row], wanted, rtol=0.02, atol=0.02)


def test_float64_stays() -> None:
    model, x = nn.Linear(3, 2).double(), torch.randn(4, 3, dtype=torch.float64)
    found = Autocast(as_output(lambda m, b: m(b[0])[:, 0]), CPU)(model, (x,))
    assert found.output.dtype == torch.float64


class Seq2Seq(nn.Module):
    """Moves labels by a method of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.config = type("Config", (), {"is_encoder_decoder": True})()
        self.embed = nn.Embedding(9, 9)

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        return labels.roll(1, 1)

    def forward(self, input_ids: Tensor, decoder_input_ids: Tensor) -> Tensor:
        return self.embed(decoder_input_ids) + self.embed(input_ids).sum(1, keepdim=True)


def test_encoder_decoders_are_known_through_it() -> None:
    model, ids = Seq2Seq(), torch.randint(0, 9, (3, 4))
    batch = {"input_ids": ids, "labels": ids.flip(1)}

    class Same(ModelOutput):
        name = "same"

        def __call__(self, given: Any, batch: Any) -> Any:
            assert sequences(given, batch, self.name).target
            return CausalLM("loss")(given, batch)

    found = Autocast(Same(), CPU)(model, batch).output
    torch.testing.assert_close(found, CausalLM("loss")(model, batch).output)


def test_it_is_set_where_a_process_forbade_to_change_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Importing torch's own test tools does that to a process, for good."""
    settings = torch.backends.disable_global_flags.__globals__
    monkeypatch.setitem(settings, "__allow_nonbracketed_mutation_flag", False)
    before = are_tf32()
    with matrix_products(tf32=True):
        assert are_tf32()
        with matrix_products(tf32=False):
            assert not are_tf32()
        assert are_tf32()
    assert are_tf32() == before and torch.backends.flags_frozen()

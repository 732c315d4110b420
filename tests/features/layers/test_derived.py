"""Tensors that models compute of their parameters alone, against plain autograd of each sample."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from features.engines import check, engine, error, integers, normal, plain
from features.models import seeded
from torch import Tensor, nn

Function = Callable[[nn.ParameterDict, Tensor], Tensor]

FUNCTIONS: dict[str, Function] = {
    "one and a weight": lambda p, x: x * (1 + p["a"]),
    "a weight twice": lambda p, x: torch.tanh(x * (1 + p["a"])) * (1 + p["a"]),
    "the same tensor twice": lambda p, x: (lambda t: torch.tanh(x * t) - x / t)(2 + p["a"].sin()),
    "of two": lambda p, x: x + p["a"] / p["b"].exp(),
    "of one beside itself": lambda p, x: x * (1 + p["a"]) + p["a"],
    "a magnitude": lambda p, x: x * (p["a"] / p["w"].norm(dim=1).detach()).view(1, -1),
    "a norm": lambda p, x: x * (p["a"] / p["w"].norm(dim=1)).view(1, -1),
    "one number": lambda p, x: x * p["s"].exp(),
    "from the right": lambda p, x: 1 / (3 + p["a"].sin()) - x,
    "a mask that learns": lambda p, x: torch.where(x > 0, x, p["a"].exp()),
    "time first": lambda p, x: (x.transpose(0, 1) * (1 + p["a"])).transpose(0, 1),
    "time first, of each position": lambda p, x: (
        x.transpose(0, 1) + p["w"].exp()[: x.shape[1], None]
    ).transpose(0, 1),
    "merged": lambda p, x: (x.reshape(-1, 4) * (1 + p["a"])).view(x.shape),
    "of each position": lambda p, x: x + (p["w"] * 2)[: x.shape[1]],
    "interpolated": lambda p, x: x + F.interpolate(p["w"][None], x.shape[2])[0, : x.shape[1]],
}


class Applied(nn.Module):
    """A function of parameters and an input, between two layers."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 3)
        self.own = nn.ParameterDict(
            {
                "a": nn.Parameter(normal(4)),
                "b": nn.Parameter(normal(4, seed=1)),
                "w": nn.Parameter(normal(4, 4, seed=2)),
                "s": nn.Parameter(normal(1, seed=3)[0]),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.function(self.own, self.first(x)))
        return out


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("batch", [1, 3])
def test_what_is_derived_of_parameters_meets_the_samples(
    name: str, batch: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="trakstore"):
        check(seeded(lambda: Applied(FUNCTIONS[name])), normal(batch, 3, 4))
    assert not caplog.records


class Biased(nn.Module):
    """Attention with a learned bias for each distance, as T5's."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused, self.bias = fused, nn.Embedding(4, 2)
        self.query, self.key, self.value = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        batch, time, _ = x.shape
        here = torch.arange(time)
        distance = (here[:, None] - here).abs().clamp(max=3)
        bias = self.bias(distance).permute(2, 0, 1)[None]
        q, k, v = (
            one(x).view(batch, time, 2, 2).transpose(1, 2)
            for one in (self.query, self.key, self.value)
        )
        for _ in range(2):  # the same bias in both layers
            if self.fused:
                q = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
            else:
                q = (q @ k.transpose(2, 3) + bias).softmax(-1) @ v
        return q


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("batch", [1, 4])
def test_biases_of_positions_that_all_samples_share(fused: bool, batch: int) -> None:
    check(seeded(lambda: Biased(fused)), normal(batch, 5, 4))


class Both(nn.Module):
    """A table of positions that is added as it is, beside one that is turned round before."""

    def __init__(self) -> None:
        super().__init__()
        self.position, self.turned = nn.Embedding(6, 4), nn.Embedding(6, 5)
        self.token = nn.Embedding(9, 4)

    def forward(self, ids: Tensor) -> Tensor:
        here = torch.arange(ids.shape[1])
        h = self.token(ids) + self.position(here)
        return h + self.turned(here[:4]).permute(1, 0)


def test_only_what_the_model_cannot_have_repeated_is_left_to_it() -> None:
    own = check(seeded(Both), integers(9, 3, 5))
    assert own._constants[("turned.weight",), 0] == "derived"


class InPlace(nn.Module):
    """A derived tensor that is written to, and one that goes where no row for each can go."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.a, self.layer = how, nn.Parameter(normal(4)), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        t, h = 1 + self.a, self.layer(x)
        if self.how == "written":
            t.mul_(2)
            return h * t
        if self.how == "a sum of samples":
            return h * (t * h.mean(0).detach())
        return torch.einsum("bi,i->bi", h, t)


@pytest.mark.parametrize(
    ("how", "generic"),
    [("written", ()), ("a sum of samples", None), ("a sum over letters", ("a",))],
)
def test_what_is_not_certain_stays_with_the_generic_engine(
    how: str, generic: tuple[str, ...] | None
) -> None:
    model, batch = seeded(lambda: InPlace(how)), (normal(3, 4),)
    own = engine(model)
    rows = own.rows(batch)
    assert error(rows.features, plain(model, batch)) < 1e-5
    assert own.generic_parameters == generic or generic is None


def test_a_function_that_hides_its_parameters_is_not_trusted() -> None:
    class Hidden(torch.autograd.Function):
        @staticmethod
        def forward(_: object, weight: Tensor) -> Tensor:
            return weight * 2

        @staticmethod
        def backward(_: object, gradient: Tensor) -> Tensor:  # type: ignore[override]
            return gradient * 2

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.layer = nn.Parameter(normal(4)), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layer(x) * Hidden.apply(self.a)
            return out

    check(seeded(Model), normal(3, 4), generic=("a",))

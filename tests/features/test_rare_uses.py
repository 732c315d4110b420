"""Parts of a model that the first rows switch off: later rows are right all the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from features.engines import engine, error, normal, plain
from features.models import seeded
from torch import Tensor, nn

ROWS, LENGTH, WIDTH = 6, 5, 8
Part = Callable[["Gated", Tensor], Tensor]


class Gated(nn.Module):
    """A known layer, and a part that is multiplied with a number of each row."""

    def __init__(self, part: Part) -> None:
        super().__init__()
        self.part, self.first = part, nn.Linear(WIDTH, WIDTH)
        self.p = nn.Parameter(torch.randn(WIDTH, WIDTH))
        self.q = nn.Parameter(torch.randn(WIDTH, WIDTH))
        self.v = nn.Parameter(torch.randn(WIDTH + LENGTH - 1))
        self.norm, self.score = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 1)
        self.register_buffer("memory", torch.randn(LENGTH, WIDTH))

    def forward(self, x: Tensor, rare: Tensor) -> Tensor:
        out: Tensor = torch.tanh(self.first(x)) + rare[:, None, None] * self.part(self, x)
        return out.mean(1)


def check(part: Part) -> None:
    model, x = seeded(lambda: Gated(part)), normal(ROWS, LENGTH, WIDTH)
    rare = torch.tensor([0.0, 0, 0, 1, 0, 1])
    own, expected = engine(model), plain(model, (x, rare))
    for rows in (slice(0, 3), slice(3, 6)):
        found = own.rows((x[rows], rare[rows]))
        assert error(found.features, expected[rows]) < 1e-5
        alone = [engine(model).rows((x[i : i + 1], rare[i : i + 1])) for i in range(6)[rows]]
        assert torch.allclose(found.outputs.output, torch.cat([a.outputs.output for a in alone]))


TWO: dict[str, Part] = {
    "linear": lambda m, x: x @ F.linear(m.q, m.p),
    "product": lambda m, x: x @ (m.p @ m.q),
    "itself": lambda m, x: x @ (m.p @ m.p.t()),
    "norm": lambda m, x: x @ m.norm(m.q),
}
SHARED: dict[str, Part] = {
    "multiplied windows": lambda m, x: x * m.v.unfold(0, WIDTH, 1),
    "added windows": lambda m, x: torch.tanh(x + m.v.unfold(0, WIDTH, 1)),
    "one number as a bias": lambda m, x: F.linear(x, m.p, m.v[2:3]),
    "one number as a product's bias": lambda m, x: torch.stack(
        [torch.addmm(m.v[2:3], one, m.p) for one in x.unbind(1)], 1
    ),
}


@pytest.mark.parametrize("name", TWO)
def test_parameters_that_a_layer_is_given_as_its_input(name: str) -> None:
    check(TWO[name])


@pytest.mark.parametrize("name", SHARED)
def test_parameters_with_entries_that_are_used_several_times(name: str) -> None:
    check(SHARED[name])

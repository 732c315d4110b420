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

# a memory's keys are the same for all samples, and the engine may repeat them for each
KEYS: dict[str, Part] = {
    "normalised": lambda m, x: x * F.normalize(m.first(m.memory)),
    "softmax of columns": lambda m, x: x * m.first(m.memory).softmax(1),
    "softmax of rows": lambda m, x: x * (m.score(m.memory)[:, 0].softmax(0) @ m.memory),
    "turned": lambda m, x: x * m.first(m.memory).flip(1),
    "first column": lambda m, x: x * m.first(m.memory)[:, :1],
    "largest": lambda m, x: x * m.first(m.memory).amax(1, keepdim=True),
    "places": lambda m, x: x * m.memory[m.first(m.memory).argmax(1) % LENGTH],
    "their number": lambda m, x: x * m.first(m.memory) / len(m.first(m.memory)),
    "their sizes": lambda m, x: x * m.first(m.memory) / m.first(m.memory).shape[0],
    "one by one": lambda m, x: x * sum(m.first(m.memory)),
    "as numbers": lambda m, x: x * m.first(m.memory) * len(m.first(m.memory).tolist()),
}


@pytest.mark.parametrize("name", TWO)
def test_parameters_that_a_layer_is_given_as_its_input(name: str) -> None:
    check(TWO[name])


@pytest.mark.parametrize("name", SHARED)
def test_parameters_with_entries_that_are_used_several_times(name: str) -> None:
    check(SHARED[name])


@pytest.mark.parametrize("name", KEYS)
def test_what_is_the_same_for_all_samples_keeps_its_dimensions(name: str) -> None:
    check(KEYS[name])


def test_what_counts_dimensions_from_the_last_one_needs_no_other_engine() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.norm = nn.Embedding(LENGTH, WIDTH), nn.LayerNorm(WIDTH)
            self.inner, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            places = torch.tanh(self.inner(self.norm(self.table(torch.arange(LENGTH))))) * 2
            out: Tensor = self.last(x + places * x)
            return out

    own, x = engine(seeded(Positions)), (normal(4, LENGTH, WIDTH),)
    assert error(own.rows(x).features, plain(seeded(Positions), x)) < 1e-5
    assert own.generic_parameters == ()


@pytest.mark.parametrize("changed", [False, True])
def test_hooks_of_activations_are_applied_before_gradients_are_cut(changed: bool) -> None:
    """As for clipping, which leaves the small gradients of the first rows as they are."""

    class Clipped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            hidden = self.first(x)
            hidden.register_hook(lambda gradient: gradient.clamp(-0.05, 0.05))
            hidden = hidden.tanh_() if changed else hidden.tanh()
            out: Tensor = self.last(hidden) * scale[:, None]
            return out

    model, scale = seeded(Clipped), torch.tensor([1e-2, 1e-2, 1e-2, 1, 1e-2, 1])
    own, inputs = engine(model), (normal(ROWS, WIDTH), scale)
    assert error(own.rows(inputs).features, plain(model, inputs)) < 1e-5
    assert own.generic_parameters == ()


class Meeting(nn.Module):
    """Rows meet only in a batch in which one of them is longer, or an expert has no place left."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.forwards = how, 0
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor, length: Tensor) -> Tensor:
        self.forwards += 1
        hidden, long = torch.tanh(self.first(x)), (length == LENGTH).float()[:, None]
        if self.how == "branch":
            short = bool((length < LENGTH).all())
            return self.last(hidden[:, :2].mean(1) if short else hidden[:, :2].sum(1) / 2)
        if self.how == "cut to the longest":
            return self.last(hidden[:, : int(length.max())].mean(1))
        if self.how == "sum of all":
            return self.last(hidden.mean(1) + (long * hidden.mean(1)).sum(0) * (1 - long))
        if self.how == "number of all":
            return self.last(hidden.mean(1) / (1 + long.sum(0)))
        if self.how == "output":
            out = self.last(hidden.mean(1))
            return out - (long * out).sum(0) * (1 - long)
        places = torch.nonzero(length > 1)[:, 0][:3]  # an expert with room for three
        return self.last(x.mean(1).index_add(0, places, hidden.mean(1)[places]))


@pytest.mark.parametrize(
    "how", ["cut to the longest", "sum of all", "number of all", "output", "room for three"]
)
def test_rows_that_meet_in_a_batch_are_those_of_each_sample_alone(how: str) -> None:
    model, x = seeded(lambda: Meeting(how)), normal(8, LENGTH, WIDTH)
    length = torch.tensor([2, 2, 2, 2, LENGTH, 2, 2, 2])
    own, expected = engine(model), plain(model, (x, length))
    for rows in (slice(0, 4), slice(4, 8)):
        assert error(own.rows((x[rows], length[rows])).features, expected[rows]) < 1e-5


# Of four samples: outputs of each alone, and features of one.
@pytest.mark.parametrize(
    ("how", "forwards"), [("branch", 1), ("cut to the longest", 1), ("number of all", 1 + 4 + 1)]
)
def test_samples_are_computed_alone_where_rows_may_meet(how: str, forwards: int) -> None:
    model, x = seeded(lambda: Meeting(how)), (normal(4, LENGTH, WIDTH), torch.full((4,), 2))
    own = engine(model)
    own.rows(x)
    model.forwards = 0  # type: ignore[assignment]
    own.rows(x)
    assert model.forwards == forwards


def test_hooks_of_a_view_of_a_weight_are_applied() -> None:
    class Clipped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(WIDTH, 3))

        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            turned = self.weight.t()
            if turned.requires_grad:
                turned.register_hook(lambda gradient: gradient.clamp(-0.05, 0.05))
            return F.linear(x, turned) * scale[:, None]

    model, scale = seeded(Clipped), torch.tensor([1e-2, 1e-2, 1e-2, 1, 1e-2, 1])
    inputs = (normal(ROWS, WIDTH), scale)
    assert error(engine(model).rows(inputs).features, plain(model, inputs)) < 1e-5


def test_a_forward_may_write_to_its_inputs() -> None:
    """Only in later rows; and where the generic engine is asked for the same batch after the other."""

    class Scales(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

        def forward(self, x: Tensor, rare: Tensor) -> Tensor:
            hidden = self.first(x.mul_(1 + rare[:, None]).sub_(rare[:, None]))
            picked = torch.nonzero(rare > -1)[:, 0]
            out: Tensor = self.last(torch.tanh(hidden)[picked])
            return out

    model = seeded(Scales)
    x, rare = normal(ROWS, WIDTH), torch.tensor([0.0, 0, 1, 1, 0, 1])
    expected = plain(model, (x.clone(), rare))
    kept, own = x.clone(), engine(model)
    for _ in range(2):
        assert error(own.rows((x, rare)).features, expected) < 1e-5
        assert torch.equal(x, kept)

"""Rows that the data send to experts and back, against plain autograd of each sample alone."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from features.engines import engine, error, generic, integers, normal, plain
from features.models import seeded
from features.test_axes import Watched
from torch import Tensor, nn

from trakstore.features.axes import Axis, Following, Places, Routed, Unplaced
from trakstore.features.draws import LabelDraws
from trakstore.features.outputs import CausalLM
from trakstore.spec import ProjectionSpec

EXPERTS, WIDTH, TIME = 4, 8, 5  # products of groups need rows of 16 bytes
Route = Callable[["Routing", Tensor, Tensor], Tensor]

grouped_mm = pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="this torch has no grouped_mm")


def loop(model: Routing, x: Tensor, choice: Tensor) -> Tensor:
    """Each expert picks its tokens, and adds what it makes of them where they were."""
    out = torch.zeros_like(x)
    for one in range(EXPERTS):
        (token,) = torch.where(choice == one)
        out.index_add_(0, token, F.linear(x[token], model.weight[one], model.bias[one]))
    return out


def reached_alone(model: Routing, x: Tensor, choice: Tensor) -> Tensor:
    """Only experts that some token reaches are asked."""
    out = torch.zeros_like(x)
    for one in F.one_hot(choice, EXPERTS).sum(0).nonzero():
        (token,) = torch.where(choice == one)
        out.index_add_(0, token, x[token] @ model.weight[one[0]].T)
    return out


def masks(model: Routing, x: Tensor, choice: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for one in range(EXPERTS):
        own = choice == one
        out[own] = model.each[one](x[own])
    return out


def products(model: Routing, x: Tensor, choice: Tensor) -> Tensor:
    """Weights are picked for each token."""
    return torch.bmm(model.weight[choice], x[:, :, None])[:, :, 0] + model.bias[choice]


def ends_of(choice: Tensor) -> Tensor:
    return torch.histc(choice.float(), EXPERTS, 0, EXPERTS - 1).cumsum(0).to(torch.int32)


def groups(model: Routing, x: Tensor, choice: Tensor, turned: bool = False) -> Tensor:
    chosen, order = torch.sort(choice)
    weight = model.weight if turned else model.weight.transpose(1, 2)
    out = F.grouped_mm(x[order], weight, offs=ends_of(chosen)) + model.bias[chosen]
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order))
    return out[back]


def groups_turned(model: Routing, x: Tensor, choice: Tensor) -> Tensor:
    return groups(model, x, choice, turned=True)


def groups_put_back(model: Routing, x: Tensor, choice: Tensor) -> Tensor:
    order = choice.argsort()
    out = torch.zeros_like(x)
    chosen = choice[order]
    out[order] = F.grouped_mm(x[order], model.weight, offs=ends_of(chosen))
    return out


def groups_argsorted(model: Routing, x: Tensor, choice: Tensor) -> Tensor:
    order = choice.argsort()
    return torch.tanh(x[order] * model.bias[choice[order]])[order.argsort()]


ROUTES: dict[str, Route] = {
    one.__name__: one for one in (loop, reached_alone, masks, products, groups_argsorted)
}
GROUPED: dict[str, Route] = {one.__name__: one for one in (groups, groups_turned, groups_put_back)}


class Routing(nn.Module):
    """A layer, experts that its answers choose, and a head."""

    def __init__(self, route: Route) -> None:
        super().__init__()
        self.route = route
        self.first, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)
        self.router = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.weight = nn.Parameter(normal(EXPERTS, WIDTH, WIDTH))
        self.bias = nn.Parameter(normal(EXPERTS, WIDTH, seed=1))
        self.each = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(EXPERTS))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).view(-1, WIDTH)
        scores, choice = self.router(h).softmax(-1).max(-1)
        out = self.route(self, h, choice) * scores[:, None]
        return self.head(torch.tanh(out.view(x.shape)) + x)


def right(route: Route, *batches: Tensor) -> tuple[str, ...]:
    model = seeded(lambda: Routing(route))
    used = engine(model)
    for batch in batches:
        assert error(used.rows((batch,)).features, plain(model, (batch,))) < 1e-5
    return used.generic_parameters


BATCHES = [normal(4, TIME, WIDTH, seed=seed) for seed in range(3)] + [normal(1, TIME, WIDTH)]
ALL = [*ROUTES, *(pytest.param(name, marks=grouped_mm) for name in GROUPED)]


@pytest.mark.parametrize("name", ALL)
def test_rows_go_to_experts_and_back(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="trakstore"):
        assert right((ROUTES | GROUPED)[name], *BATCHES) == ()
    assert not caplog.records


@pytest.mark.parametrize("name", ALL)
def test_an_expert_that_a_sample_or_all_of_them_do_not_reach(name: str) -> None:
    # All tokens of a sample are alike, and so go to one expert: three of the four are never reached.
    one = normal(WIDTH).expand(1, TIME, WIDTH)
    assert right((ROUTES | GROUPED)[name], torch.cat([one, -one, one])) == ()
    model = seeded(lambda: Routing((ROUTES | GROUPED)[name]))
    features = engine(model).rows((torch.cat([one, -one]),)).features
    assert error(features, plain(model, (torch.cat([one, -one]),))) < 1e-5


@pytest.mark.parametrize("kind", ["sjlt", "rademacher", "kronecker"])
@pytest.mark.parametrize("name", ALL)
def test_any_projection_of_experts(name: str, kind: str) -> None:
    model = seeded(lambda: Routing((ROUTES | GROUPED)[name]))
    spec = ProjectionSpec(kind, dim=32)  # type: ignore[arg-type]
    own, other = (make(model, spec).rows((BATCHES[0],)) for make in (engine, generic))
    assert error(own.features, other.features.double()) < 1e-5


def full(model: Routing, x: Tensor, choice: Tensor) -> Tensor:
    """An expert has three places, for the first tokens of the batch that ask for it."""
    place = F.one_hot(choice, EXPERTS).cumsum(0).gather(1, choice[:, None])[:, 0]
    kept = (place <= 3).to(x.dtype)[:, None]
    return products(model, x, choice) * kept


def full_after_sorting(model: Routing, x: Tensor, choice: Tensor) -> Tensor:
    chosen, order = torch.sort(choice, stable=True)
    count = F.one_hot(chosen, EXPERTS).cumsum(0).gather(1, chosen[:, None])[:, 0]
    out = torch.zeros_like(x)
    kept = order[count <= 3]
    out[kept] = x[kept] * model.bias[choice[kept]]
    return out


def beside_another(model: Routing, x: Tensor, choice: Tensor) -> Tensor:
    """A row meets the one that lies before it in the order."""
    chosen, order = torch.sort(choice)
    own = x[order] * model.bias[chosen]
    mixed = own + torch.cat([own[:1], own[:-1]])
    return mixed[order.argsort()]


def left_in_order(model: Routing, x: Tensor, choice: Tensor) -> Tensor:
    chosen, order = torch.sort(choice)
    return x[order] * model.bias[chosen]


def put_elsewhere(model: Routing, x: Tensor, choice: Tensor) -> Tensor:
    chosen, order = torch.sort(choice)
    out = torch.zeros_like(x)
    out[order.flip(0)] = x[order] * model.bias[chosen]
    return out


def added_elsewhere(model: Routing, x: Tensor, choice: Tensor) -> Tensor:
    (token,) = torch.where(choice == 0)
    other = (token + TIME) % len(x)
    return torch.zeros_like(x).index_add_(0, other, x[token] * model.bias[0]) + x


def wrong_ends(model: Routing, x: Tensor, choice: Tensor) -> Tensor:
    """Groups of equal size, whatever was chosen."""
    _, order = torch.sort(choice)
    each = len(x) // EXPERTS
    ends = torch.tensor([each, 2 * each, 3 * each, len(x)], dtype=torch.int32)
    return F.grouped_mm(x[order], model.weight, offs=ends)[order.argsort()]


def number_of_a_row(model: Routing, x: Tensor, choice: Tensor) -> Tensor:
    """What is done to a row depends on its place among all."""
    order = choice.argsort()
    back = order.argsort()
    return products(model, x, choice) * back[:, None]


def tokens_changed_by_number(model: Routing, x: Tensor, choice: Tensor) -> Tensor:
    (token,) = torch.where(choice < 2)
    return torch.zeros_like(x).index_add_(0, token, x[token] * token[:, None] * model.bias[0]) + x


MIXING = [full, full_after_sorting, beside_another, left_in_order, put_elsewhere, added_elsewhere]
MIXING += [number_of_a_row, tokens_changed_by_number]


@pytest.mark.parametrize(
    "route", [*MIXING, pytest.param(wrong_ends, marks=grouped_mm)], ids=lambda one: one.__name__
)
def test_samples_that_change_one_another_are_done_alone(route: Route) -> None:
    """The features are of each sample by itself, as the generic engine has them."""
    right(route, *BATCHES)
    model = seeded(lambda: Routing(route)).eval()
    alone = torch.cat([model(one[None]) for one in BATCHES[0]])
    assert not torch.allclose(model(BATCHES[0]), alone), "the batch changes nothing here"


def placed(call: Callable[[Tensor], object]) -> object:
    following = Following(3)
    batch = following.begin(torch.linspace(1, 0, 12).view(3, 4))
    with Watched(following):
        result = call(batch)
        return following.of(result) if isinstance(result, Tensor) else result


def test_an_order_knows_the_samples_of_its_rows() -> None:
    mark = placed(lambda x: x.view(-1).argsort())
    assert isinstance(mark, Places) and mark.source == Axis(0, 1, 4)
    assert mark.rows.samples.tolist() == [2] * 4 + [1] * 4 + [0] * 4  # the last is the smallest
    mark = placed(lambda x: x.view(-1, 1)[x.view(-1).argsort()])
    assert isinstance(mark, Routed) and mark.dim == 0
    assert placed(lambda x: x[x[:, 0].argsort()][:, None].transpose(0, 1).flatten(1)) == (
        Unplaced.LOST
    )


def test_routed_rows_come_first_with_zeros_for_those_that_have_fewer() -> None:
    mark = placed(lambda x: x.view(-1)[(x > 0.3).view(-1)])
    assert isinstance(mark, Routed)
    rows = torch.arange(1.0, 9.0)
    front = mark.front(rows, 3)
    assert front is not None
    assert front.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [0, 0, 0, 0]]
    assert mark.front(rows[:4], 3) is None


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x.view(-1).argsort() + 1,
        lambda x: x.view(-1).argsort() // 3,
        lambda x: x.view(-1).argsort().float(),
        lambda x: x.view(-1)[x.view(-1).argsort()][:5],
        lambda x: x.view(-1).sort()[0].cumsum(0),
        lambda x: x.view(-1).sort()[0].view(3, 4),
    ],
)
def test_what_is_not_known_of_rows_is_lost(call: Callable[[Tensor], object]) -> None:
    assert placed(call) in (Unplaced.LOST, Unplaced.SUSPECT)


def test_an_index_that_nothing_is_known_of_gives_rows_that_may_be_mixed() -> None:
    following = Following(3)
    batch = following.begin(torch.linspace(1, 0, 12).view(3, 4))
    with Watched(following):
        rows = batch[batch.sum(1).topk(2)[1]]
        mark = following.of(rows)
    assert isinstance(mark, Routed) and mark.rows.samples.tolist() == [0, 1]
    assert following.mixed


class Tokens(nn.Module):
    """A language model with experts, and a scale that is derived of a parameter."""

    def __init__(self, route: Route) -> None:
        super().__init__()
        self.token, self.last = nn.Embedding(11, WIDTH), nn.Linear(3, 11)
        self.gain, self.experts = nn.Parameter(normal(WIDTH)), Routing(route)

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.last(self.experts(self.token(ids) * (1 + self.gain)))
        return logits


@pytest.mark.parametrize("name", ALL)
def test_other_labels_of_the_same_samples_go_back_through_the_same_graph(name: str) -> None:
    model, output = seeded(lambda: Tokens((ROUTES | GROUPED)[name])).eval(), CausalLM()
    ids = integers(11, 4, TIME)
    draws = LabelDraws(model, output, np.arange(4), 3, 0)
    batch = draws.labelled(np.arange(12), (ids.repeat_interleave(3, 0),))
    own = engine(model, output=output)
    apart, together = own.rows(batch), own.rows(batch, draws=3)
    assert not own.generic_parameters
    assert error(together.features, plain(model, batch, output)) < 1e-5
    assert error(together.features, apart.features.double()) < 1e-5

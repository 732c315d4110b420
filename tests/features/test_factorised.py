"""The factorised engine: whole models, what it must not trust, and what it leaves behind."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from features.engines import Bent, check, engine, error, generic, integers, normal, plain
from features.models import Recurrent, mlp, seeded
from features.whole_models import MODELS, Language, ResNet
from torch import Tensor, nn

from trakstore.features.layers import MATCHERS
from trakstore.features.outputs import RowOutputs
from trakstore.spec import ProjectionSpec

SPECS = [
    ProjectionSpec("sjlt", dim=40),
    ProjectionSpec("sjlt", dim=7, s=3),
    ProjectionSpec("rademacher", dim=33),
    ProjectionSpec("gaussian", dim=9),
    ProjectionSpec("kronecker", dim=40, side=5),
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if not model[2]])
def test_both_engines_give_the_same_features(name: str, spec: ProjectionSpec) -> None:
    make, inputs, _ = MODELS[name]
    model = seeded(make)
    expected = generic(model, spec).rows(inputs)
    got = engine(model, spec).rows(inputs)
    assert error(got.features, expected.features.double()) < 1e-5
    for one, other in zip(got.outputs, expected.outputs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_recurrent_layer_goes_through_the_generic_engine(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, logger="trakstore"):
        own = check(seeded(Recurrent), normal(4, 12), generic=tuple(f"gru.{n}" for n in GRU))
        own.rows((normal(4, 12),))
    lines = [r.message for r in caplog.records if "generic engine" in r.message]
    assert len(lines) == 1 and "their layers are not known: gru.bias_hh_l0" in lines[0]


GRU = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")


def test_frozen_parameters_and_flags() -> None:
    model = seeded(lambda: Language())
    model.layers.layers[0].requires_grad_(False)  # type: ignore[union-attr, operator, index]
    model.head.weight.requires_grad_(True)  # type: ignore[union-attr]
    flags = [p.requires_grad for p in model.parameters()]
    check(model, integers(11, 3, 6))
    assert flags == [p.requires_grad for p in model.parameters()]


def test_only_a_bias_or_only_a_weight() -> None:
    for frozen in ("weight", "bias"):
        model = seeded(ResNet)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.endswith(frozen))
        check(model, normal(3, 3, 8, 8))


class Broken(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.a, self.b = how, nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        if self.how == "unseen":  # a use that no layer type knows, beside one that is known
            h = h + torch.einsum("oi,bi->bo", self.a.weight, x)
        if self.how == "data":  # groups of samples, of sizes that depend on the data
            out = torch.zeros_like(h)
            mask = x[:, 0] > 0
            out[mask] = self.b(h.masked_select(mask[:, None]).view(-1, 4))
            return out + h
        if self.how == "mixed":  # samples in two dimensions
            return self.b(h @ h.T @ h)
        if self.how == "sorted":  # no dimension is one sample's
            return self.b(torch.sort(h.flatten())[0].view(-1, 4))
        return self.b(h)


@pytest.mark.parametrize(("how", "unknown"), [("unseen", ("a.weight",)), ("fine", ())])
def test_what_the_check_finds_goes_to_the_generic_engine(
    how: str, unknown: tuple[str, ...]
) -> None:
    check(seeded(lambda: Broken(how)), normal(4, 4), generic=unknown)


def test_parts_that_depend_on_the_data_are_done_one_by_one() -> None:
    check(seeded(lambda: Broken("data")), normal(4, 4), generic=("b.weight", "b.bias"))


def test_an_evaluation_that_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients are right, their projection is not: all goes through the generic engine."""
    model, inputs = mlp(), (normal(4, 12),)
    own, expected = engine(model, SPECS[0]), generic(model, SPECS[0]).rows(inputs)
    add_outer = type(own.projector).add_outer

    def wrong(self: Any, out: Tensor, outer: Any) -> None:
        add_outer(self, out, outer)
        if self.spec == SPECS[0]:
            out += 1

    monkeypatch.setattr(type(own.projector), "add_outer", wrong)
    assert error(own.rows(inputs).features, expected.features.double()) < 1e-5
    assert len(own.generic_parameters) == 4


def test_an_activation_that_is_changed_is_noticed() -> None:
    """Ordinary training could not do this model: autograd's own error comes up."""

    class Wrong(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            out = self.b(h)
            h.add_(1)
            return out + h

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        engine(seeded(Wrong)).rows((normal(4, 4),))


def test_an_input_that_is_changed_where_only_the_bias_is_wanted() -> None:
    class Fine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            out = self.b(h)
            h.add_(1)
            return out + h

    check(seeded(Fine), normal(4, 4))


def test_a_layer_that_the_first_samples_did_not_use() -> None:
    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            return self.b(h) if bool((x[:, 0] > 0).any()) else h

    model, x = seeded(Routed), normal(6, 4)
    x[:, 0] = torch.tensor([-1.0, -1, -1, 1, 1, 1])
    own = engine(model)
    own.rows((x[:3],))
    assert error(own.rows((x[3:],)).features, plain(model, (x[3:],))) < 1e-5


def test_nothing_is_left_behind_also_after_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    model = seeded(Language)
    model.position.requires_grad_(False)  # type: ignore[union-attr]
    own, inputs = engine(model, SPECS[0]), (integers(11, 4, 6),)
    own.rows(inputs)
    model.token.weight.grad = None  # type: ignore[union-attr]
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(own.projector, "add_piece", interrupted)
    with pytest.raises(KeyboardInterrupt):
        own.rows(inputs)
    monkeypatch.undo()
    assert flags == {n: p.requires_grad for n, p in model.named_parameters()}
    assert all(p.grad is None for p in model.parameters())
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    assert (
        error(own.rows(inputs).features, generic(model, SPECS[0]).rows(inputs).features.double())
        < 1e-5
    )


def test_it_works_where_gradients_are_off() -> None:
    model, x = mlp(), normal(3, 12)
    expected = plain(model, (x,))
    with torch.no_grad():
        got = engine(model).rows((x,)).features
    assert error(got, expected) < 1e-5


def test_batches_of_any_size_and_lengths_give_the_same_rows() -> None:
    model, ids = seeded(Language), integers(11, 6, 6)
    own = engine(model)
    whole = own.rows((ids,)).features.double()
    for size in (1, 2, 5):
        parts = [own.rows((ids[i : i + size],)).features for i in range(0, 6, size)]
        assert error(torch.cat(parts), whole) < 1e-5
    shorter = ids[:, :4]
    assert error(own.rows((shorter,)).features, plain(model, (shorter,))) < 1e-5


def test_a_single_sample_is_enough_to_start() -> None:
    model, x = seeded(ResNet), normal(3, 3, 8, 8)
    own = engine(model)
    own.rows((x[:1],))
    assert error(own.rows((x,)).features, plain(model, (x,))) < 1e-5 and not own.generic_parameters


def test_threads_change_nothing_but_rounding() -> None:
    model, x = seeded(ResNet), normal(64, 3, 16, 16)
    before = torch.get_num_threads()
    try:
        rows = []
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            rows.append(engine(model, SPECS[0]).rows((x,)).features)
    finally:
        torch.set_num_threads(before)
    assert error(rows[1], rows[0].double()) < 1e-5
    torch.testing.assert_close(rows[2], rows[1], rtol=0, atol=0)


def test_every_matcher_is_of_a_function() -> None:
    assert all(callable(function) for function in MATCHERS)
    assert Bent().name


class RarelyUnknown(nn.Module):
    """A known layer, and beside it a use of its weight that no layer type knows, for large inputs."""

    def __init__(self, form: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.form, self.a = form, nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Any:
        known = self.a(x)
        rare = known * 0
        if x.abs().max() > 50:
            rare = torch.einsum("oi,bi->bo", self.a.weight, x)
        return self.form(known, rare)


class SumOfCalls(Bent):
    """Of the answers to two inputs."""

    calls_alone = True

    def __call__(self, model: Callable[..., Any], batch: Any) -> RowOutputs:
        def called(x: Tensor) -> Tensor:
            found = model(x)
            found = vars(found).values() if isinstance(found, SimpleNamespace) else found
            return found if isinstance(found, Tensor) else sum(found)

        return super().__call__(lambda x, other: called(x) + called(other), batch)


FORMS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tensor": lambda known, rare: known + rare,
    "tuple": lambda known, rare: (known, rare),
    "object": lambda known, rare: SimpleNamespace(logits=known, others=rare),
}


@pytest.mark.parametrize("form", FORMS)
def test_unknown_uses_are_seen_behind_all_that_a_model_answers(form: str) -> None:
    model, output = seeded(lambda: RarelyUnknown(FORMS[form])), SumOfCalls()
    own = engine(model, output=output)
    x, other, large = normal(4, 4), normal(4, 4, seed=1), 50 + normal(4, 4, seed=1).abs()
    for batch in ((x, other), (large, x), (x, large)):
        assert error(own.rows(batch).features, plain(model, batch, output)) < 1e-5
    assert not own.generic_parameters

"""Engines beside plain autograd, one sample at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as tree

from trakstore.features.factorised import FactorisedEngine
from trakstore.features.gradients import GenericEngine
from trakstore.features.outputs import ModelOutput, RowOutputs
from trakstore.features.parameters import parameter_spec, select_parameters
from trakstore.features.projectors import Projector, make_projector
from trakstore.spec import ProjectionSpec

IDENTITY = ProjectionSpec("identity")


class Bent(ModelOutput):
    """A different nonlinear function of every number that the model gives for a sample."""

    name = "bent"

    def __call__(self, model: Callable[..., Any], batch: Any) -> RowOutputs:
        out = model(*batch).flatten(1)
        weights = torch.cos(torch.arange(out.shape[1], dtype=torch.float32))
        scalar = (torch.sin(out.float()) * weights).sum(1)
        return RowOutputs(scalar, scalar, -torch.ones_like(scalar))


def projector(model: nn.Module, spec: ProjectionSpec) -> Projector:
    return make_projector(spec, parameter_spec(select_parameters(model), ("*",)))


def engine(
    model: nn.Module, spec: ProjectionSpec = IDENTITY, output: ModelOutput | None = None
) -> FactorisedEngine:
    selected = select_parameters(model)
    return FactorisedEngine(model.eval(), output or Bent(), selected, projector(model, spec))


def generic(
    model: nn.Module, spec: ProjectionSpec = IDENTITY, output: ModelOutput | None = None
) -> GenericEngine:
    selected = select_parameters(model)
    return GenericEngine(model.eval(), output or Bent(), selected, projector(model, spec))


def plain(model: nn.Module, batch: Any, output: ModelOutput | None = None) -> Tensor:
    """Per-sample gradients by ordinary backward passes, (batch, parameters) float64."""
    model.eval()
    parameters = list(select_parameters(model).values())
    rows = []
    for i in range(len(tree.tree_leaves(batch)[0])):
        sample = tree.tree_map(lambda t, i=i: t[i : i + 1], batch)
        for parameter in parameters:
            parameter.grad = None
        (output or Bent())(model, sample).output.sum().backward()
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        rows.append(torch.cat([gradient.reshape(-1) for gradient in found]))
    for parameter in parameters:
        parameter.grad = None
    return torch.stack(rows).double()


def error(got: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest number, or to 1: terms are of that size."""
    return float((got.double() - expected).abs().max() / expected.abs().max().clamp_min(1))


def check(model: nn.Module, *inputs: Tensor, generic: tuple[str, ...] = ()) -> FactorisedEngine:
    """The factorised engine gives the gradients of plain autograd, all but some by itself."""
    own = engine(model)
    first = own.rows(inputs)
    assert own.generic_parameters == generic
    expected = plain(model, inputs)
    assert error(first.features, expected) < 1e-5
    last = own.rows(tree.tree_map(lambda t: t[-1:], inputs))  # a short batch at the end
    assert error(last.features, expected[-1:]) < 1e-5
    return own


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def integers(high: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(seed))

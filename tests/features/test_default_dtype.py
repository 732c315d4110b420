"""Features are the same whatever torch makes tensors of by default."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from features.engines import engine, generic, integers, normal
from features.models import ConvNet, seeded
from torch import Tensor, nn

from trakstore.features.outputs import ModelOutput, as_output
from trakstore.spec import ProjectionSpec

PROJECTIONS = [
    ProjectionSpec("sjlt", dim=32, s=4),
    ProjectionSpec("kronecker", dim=32, side=4),
    ProjectionSpec("rademacher", dim=40),
    ProjectionSpec("gaussian", dim=40),
    ProjectionSpec("identity"),
]


@contextmanager
def default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class Scaled(nn.Module):
    """Words with norms, and a weight that is used by a view of it and by an operator."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.norm = nn.Embedding(20, 12), nn.LayerNorm(12)
        self.scale, self.head = nn.Parameter(torch.ones(2, 12)), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head((self.norm(self.words(x)) * self.scale[1]).mean(1))
        return found


MODELS = {
    "convolutions": (lambda: seeded(ConvNet), normal(5, 12)),
    "words": (lambda: seeded(Scaled), integers(20, 5, 40)),
}


def margin() -> ModelOutput:
    return as_output("margin")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_the_default_dtype_changes_nothing(name: str, dtype: torch.dtype) -> None:
    make, inputs = MODELS[name]
    batch, model = (inputs, torch.arange(5) % 3), make()
    for spec in PROJECTIONS:
        own, other = engine(model, spec, margin()), generic(model, spec, margin())
        wanted = [own.rows(batch), other.rows(batch)]
        with default(dtype):
            got = [own.rows(batch), generic(model, spec, margin()).rows(batch)]
        for one, two in zip(got, wanted, strict=True):
            assert one.features.dtype == torch.float32
            assert torch.equal(one.features, two.features)
            assert torch.equal(one.outputs.output, two.outputs.output)

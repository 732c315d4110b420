"""Models whose parameters are exchanged for a call are right, and are themselves again afterwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from features.engines import engine, error, generic, normal, plain
from features.models import Samples, seeded
from torch import Tensor, nn

from trakstore import ProjectionSpec
from trakstore.errors import TrakStoreError
from trakstore.features import featurize
from trakstore.features.exchanged import exchanged

WIDTH = 6


class Turned(nn.Module):
    """A layer of a parameter that only the generic engine knows."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.last = nn.Parameter(torch.randn(WIDTH, WIDTH)), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.tanh(x @ torch.linalg.matrix_exp(self.weight / 4)))
        return out


class Repeated(nn.Module):
    """One layer under several names, and a table of parameters that two modules share."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Turned()] * 3)
        self.table = nn.ParameterDict({"rows": torch.randn(2, WIDTH)})
        self.same = self.table

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x * self.table["rows"].cumsum(0)[1] + self.same["rows"][0]


def tied() -> nn.Module:
    """Two layers, of which one has the other's parameters."""
    model = nn.Sequential(Turned(), nn.Tanh(), Turned())
    model[2].weight, model[2].last.bias = model[0].weight, model[0].last.bias
    return model


def normed() -> nn.Module:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH))
    return nn.Sequential(Turned(), layer, nn.Tanh(), layer)


@pytest.mark.parametrize("make", [Repeated, tied, normed])
@pytest.mark.parametrize("how", [engine, generic])
def test_what_is_shared_is_right_and_stays_the_models_own(
    make: Callable[[], nn.Module], how: Callable[[nn.Module], object]
) -> None:
    model, x = seeded(make), (normal(5, WIDTH),)
    before = {name: id(one) for name, one in model.named_parameters(remove_duplicate=False)}
    own = how(model)
    assert error(own.rows(x).features, plain(model, x)) < 1e-5  # type: ignore[attr-defined]
    assert not own.one_by_one  # type: ignore[attr-defined]
    after = {name: id(one) for name, one in model.named_parameters(remove_duplicate=False)}
    assert after == before
    model(*x).sum().backward()
    assert all(one.grad is not None for one in model.parameters())


def test_all_comes_back_also_after_errors() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    weight, mean = model[0].weight, model[1].running_mean
    other = torch.ones(2, 2)
    with pytest.raises(ValueError, match="in the middle"), exchanged(model, {id(weight): other}):
        assert model[0].weight is other
        model[1].running_mean = torch.zeros(2)
        model.register_buffer("more", torch.zeros(1))
        raise ValueError("in the middle")
    assert model[0].weight is weight and model[1].running_mean is mean
    assert dict(model.named_buffers()).keys() == dict(nn.BatchNorm1d(2).named_buffers("1")).keys()


class Averaged(nn.Module):
    """A forward that keeps an average of what it computes, and reads it the next time."""

    def __init__(self, reads: bool) -> None:
        super().__init__()
        self.first, self.last, self.reads = nn.Linear(12, WIDTH), Turned(), reads
        self.register_buffer("average", torch.zeros(1, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.first(x))
        self.average = self.average * 0.9 + out.detach().mean(0, keepdim=True) * 0.1
        return out + self.average if self.reads else out


def test_buffers_that_are_assigned_anew_are_as_they_were(tmp_path: Path) -> None:
    model, x = seeded(lambda: Averaged(reads=False)), (normal(5, 12),)
    own = engine(model)
    for _ in range(2):
        assert error(own.rows(x).features, plain(model, x)) < 1e-5
    assert not own.one_by_one
    given = {"projector": ProjectionSpec("identity"), "progress": False}
    featurize(seeded(lambda: Averaged(reads=False)), Samples(9), tmp_path / "s.zarr", **given)
    with pytest.raises(TrakStoreError, match="changed the buffer average"):
        featurize(seeded(lambda: Averaged(reads=True)), Samples(9), tmp_path / "t.zarr", **given)

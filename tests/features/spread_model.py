"""A process with a model on two devices: prints how far its features are from those on one.

It is a process of its own, since torch can be given a second device once, and keeps it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from features.engines import engine, error, normal
from features.models import seeded
from features.second_device import DEVICE, Elsewhere, There
from torch import Tensor, nn

import trakstore as ts
from trakstore.errors import TrakStoreError
from trakstore.features import FunctionOutput, featurize

SPECS = [
    ts.ProjectionSpec("identity"),
    ts.ProjectionSpec("sjlt", dim=32),
    ts.ProjectionSpec("kronecker", dim=32, side=3),
    ts.ProjectionSpec("rademacher", dim=16),
]


class Parts(nn.Module):
    """Layers of which the later ones may be on another device; samples come back from there."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh())
        self.last = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        out: Tensor = self.last(h.to(self.last[0].weight.device))
        return out.to(x.device)


class Unknown(Parts):
    """Uses weights on both devices as no layer does."""

    def forward(self, x: Tensor) -> Tensor:
        both = [layers[0].weight.exp().sum().to(x.device) for layers in (self.first, self.last)]
        out: Tensor = super().forward(x) * sum(both)
        return out


def spread(model: Any) -> Any:
    """Take the last layers of a model to the second device."""
    for module in model.last.modules():
        for name, own in list(module._parameters.items()):
            module._parameters[name] = nn.Parameter(There(own.detach()))
    model.hf_device_map = {"first": "cpu", "last": DEVICE}
    return model


def output(model: Any, batch: Any) -> Tensor:
    values: Tensor = model(batch[0]).sin().sum(1)
    return values


def stored(model: nn.Module, place: Path) -> Tensor:
    options: dict[str, Any] = {"output": FunctionOutput(output, name="sum"), "projector": SPECS[1]}
    data = [(normal(6, seed=i),) for i in range(9)]
    featurize(model, data, place, batch_size=4, progress=False, **options)
    return torch.tensor(ts.open_store(place).features(0, "train").values)


def main() -> None:
    x, found = (normal(5, 6),), dict[str, Any]()
    with Elsewhere(), tempfile.TemporaryDirectory() as folder:
        for make in (Parts, Unknown):
            for spec in SPECS:
                own, whole = engine(spread(seeded(make)), spec), engine(seeded(make), spec)
                apart = error(own.rows(x).features, whole.rows(x).features.double())
                found[f"{make.__name__} {spec.kind}"] = apart
            found[f"{make.__name__} generic"] = own.generic_parameters
        rows = stored(spread(seeded(Parts)), Path(folder) / "s")
        found["featurize"] = error(rows, stored(seeded(Parts), Path(folder) / "w").double())
        try:
            featurize(spread(seeded(Parts)), [], Path(folder) / "n", device=DEVICE)
        except TrakStoreError as refused:
            found["refused"] = str(refused)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()

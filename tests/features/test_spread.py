"""Models that are spread over the devices of one process: a second device is made up, on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn
from torch.autograd.graph import get_gradient_edge
from torch.utils import backend_registration

from trakstore.features.axes import Following
from trakstore.features.projectors import Collecting, Piece, Rows, make_projector
from trakstore.features.spread import SpreadSums, is_spread
from trakstore.features.tape import Tape
from trakstore.spec import ParameterSpec, ProjectionSpec

TESTS = Path(__file__).parents[1]


@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="torch has no place for a device in Python",
)
def test_features_are_those_of_the_model_on_one_device() -> None:
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")])
    ran = subprocess.run(
        [sys.executable, str(TESTS / "features" / "spread_model.py")],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    assert found.pop("Parts generic") == []
    assert {"first.0.weight", "last.0.weight"} <= set(found.pop("Unknown generic"))
    assert "spread over devices" in found.pop("refused")
    assert len(found) == 9 and max(found.values()) < 1e-5, found


def test_a_model_is_spread_where_accelerate_placed_it() -> None:
    model: Any = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"))
    assert not is_spread(model)
    model.hf_device_map = {"0": "cpu", "1": "meta"}
    assert is_spread(model)
    model[1] = nn.Linear(2, 2)
    assert not is_spread(model)


def test_summands_are_made_once_for_each_device() -> None:
    sums = SpreadSums(torch.zeros(2, 3))
    sums.on(torch.device("cpu")).add_(1)
    assert sums.on(torch.device("meta")) is sums.on(torch.device("meta"))
    assert sums.on(torch.device("meta")).is_meta and sums.on(torch.device("cpu")).sum() == 6


class Noted(Collecting):
    """Devices of the pieces that came, and at last that it ended."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def add(self, out: torch.Tensor, piece: Piece) -> None:
        assert isinstance(piece, Rows) and piece.tile.device == out.device
        self.seen.append(out.device.type)

    def finish(self) -> None:
        self.seen.append("end")


def test_pieces_of_each_device_are_collected_by_themselves() -> None:
    projector = make_projector(
        ProjectionSpec("sjlt", dim=16), ParameterSpec((("a", (3,)), ("b", (3,))))
    )
    sums, made = SpreadSums(torch.zeros(2, 16)), [Noted(), Noted()]
    following = Following(2, frozenset())
    with mock.patch.object(projector, "collecting", side_effect=made):
        tape = Tape(following, {}, projector, lambda _, device: sums.on(device), lambda _: True)
        for name, device in (("a", "cpu"), ("b", "meta"), ("a", "cpu")):
            piece = Rows(name, torch.ones(2, 3, 1, device=device))
            tape._add(piece, True, torch.device(device))
        x = torch.ones(2, requires_grad=True)
        tape.backward(2 * x, [get_gradient_edge(x).node], set())
    assert [one.seen for one in made] == [["cpu", "cpu", "end"], ["meta", "end"]]

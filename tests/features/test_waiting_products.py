"""Small products that wait for one another and are multiplied at once: interpreted without a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from unittest import mock

import numpy as np
import pytest
import reference_projection as reference
import torch

from trakstore.features.footprint import peak_bytes
from trakstore.features.projectors import Outer, Projector, make_projector, waiting_products
from trakstore.features.projectors import sjlt as sjlt_file
from trakstore.features.projectors.thin_factors import ThinFactors
from trakstore.spec import ParameterSpec, ProjectionSpec

pytest.importorskip("triton", reason="kernels need Triton, which there is for Linux")

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Two of other shapes, one of other positions, and one with a side that is not projected.
SHAPES = {"a": (6, 30), "b": (7, 9), "far": (5, 8), "narrow": (6, 2)}
POSITIONS = {"far": 3}
SPEC = ProjectionSpec("kronecker", dim=20, side=3)
PARAMETERS = ParameterSpec(tuple(SHAPES.items()))


@pytest.fixture(autouse=True)
def kernels_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sjlt_file, "usable", lambda device, _=7: device.type == DEVICE.type)


def product(name: str, first_row: int = 0) -> tuple[Outer, torch.Tensor]:
    """Return a product of 4 samples, and their gradients by the definition."""
    rows, columns = SHAPES[name]
    positions = POSITIONS.get(name, 5)
    generator = torch.Generator().manual_seed(len(name) + rows + columns)
    left = torch.randn(4, positions, rows - first_row, generator=generator)
    right = torch.randn(4, positions, columns, generator=generator)
    gradient = torch.zeros(4, rows, columns)
    gradient[:, first_row:] = left.mT @ right
    there = right.to(DEVICE)
    outer = Outer(name, left.to(DEVICE), lambda a, b: there[a:b], positions, columns, first_row)
    return outer, gradient.flatten(1)


def collected(projector: Projector, outers: Sequence[Outer]) -> tuple[torch.Tensor, list[int]]:
    """Return features of a batch, and how many products of a sample each launch multiplied."""
    out, collecting = torch.zeros(4, projector.dim, device=DEVICE), projector.collecting()
    multiplied, counts = ThinFactors.multiplied, []

    def counted(factors: ThinFactors) -> torch.Tensor:
        counts.append(len(factors.left) // 4)
        return multiplied(factors)

    with mock.patch.object(ThinFactors, "multiplied", counted):
        for outer in outers:
            collecting.add(out, outer)
        collecting.finish()
    return out.cpu(), counts


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("first_row", [0, 2])
def test_those_of_equal_shapes_are_multiplied_at_once(first_row: int, scaled: bool) -> None:
    projector, sides = make_projector(SPEC, PARAMETERS), {}
    if scaled:
        sides = {n: (torch.rand(r) + 0.5, torch.rand(c) + 0.5) for n, (r, c) in SHAPES.items()}
        projector = projector.of_scaled(sides)  # type: ignore[assignment]
    outers, gradients = zip(*(product(name, first_row) for name in SHAPES), strict=True)
    got, counts = collected(projector, outers)
    if scaled:
        each = [(a[:, None] * b).flatten() for a, b in sides.values()]
        gradients = tuple(g * own for g, own in zip(gradients, each, strict=True))
    expected = torch.cat(gradients, 1).double().numpy() @ reference.matrix(SPEC, SHAPES)
    assert np.abs(got.numpy() - expected).max() <= 1e-5 * np.abs(expected).max()
    assert sorted(counts) == [1, 1, 2], "one cannot wait, as it has no memory of its own"


def test_what_a_model_changes_meanwhile_changes_nothing() -> None:
    projector = make_projector(SPEC, PARAMETERS)
    outers = [product(name)[0] for name in SHAPES]
    expected, _ = collected(projector, outers)
    out, collecting = torch.zeros(4, SPEC.dim or 0, device=DEVICE), projector.collecting()
    for outer in outers:
        collecting.add(out, outer)
        outer.left.zero_()
        outer.make_right(0, 4).zero_()
    collecting.finish()
    assert torch.equal(out.cpu(), expected)


def test_waiting_ends_where_memory_does_and_bits_are_those_of_every_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    projector, outers = make_projector(SPEC, PARAMETERS), [product("a")[0]] * 5
    once, counts = collected(projector, outers)
    assert counts == [5]
    each = 2 * 4 * 4 * 5 * 3  # bytes of both factors
    monkeypatch.setattr(waiting_products, "_BYTES", 2 * each)
    first, counts = collected(projector, outers)
    assert counts == [2, 2, 1]
    torch.testing.assert_close(first, once)
    for _ in range(2):
        again, _ = collected(projector, outers)
        assert torch.equal(again, first)
    monkeypatch.setattr(waiting_products, "_LARGE", each - 1)
    alone, counts = collected(projector, outers)
    assert counts == [1] * 5
    torch.testing.assert_close(alone, once)


def test_memory_of_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ProjectionSpec("kronecker", dim=64, side=2)
    projector = make_projector(spec, ParameterSpec((("w", (8, 8)),)))
    x = torch.randn(4, 1024, 8, device=DEVICE)
    outer = Outer("w", x, lambda a, b: x[a:b], 1024, 8)
    each = 2 * 4 * 4 * 1024 * 2
    monkeypatch.setattr(waiting_products, "_BYTES", 4 * each)
    peaks = [peak_bytes(lambda n=n: collected(projector, [outer] * n)) for n in (4, 16)]
    assert peaks[0] >= 8 * each, "they wait, and are stacked"
    # The factors that had no room are there while the others are stacked.
    assert peaks[1] < peaks[0] + 2 * each


def test_pieces_of_other_outputs_are_apart() -> None:
    projector, (outer, _) = make_projector(SPEC, PARAMETERS), product("a")
    other, _ = product("b")
    outs = torch.zeros(2, 4, SPEC.dim or 0, device=DEVICE)
    collecting = projector.collecting()
    for out, piece in zip(outs, (outer, other), strict=True):
        collecting.add(out, piece)
    collecting.finish()
    for out, piece in zip(outs, (outer, other), strict=True):
        torch.testing.assert_close(out.cpu(), collected(projector, [piece])[0])


def test_without_kernels_nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sjlt_file, "usable", lambda *_: False)
    _, counts = collected(make_projector(SPEC, PARAMETERS), [product("a")[0], product("b")[0]])
    assert counts == [1, 1]

"""Small products that wait for one another and are multiplied at once: interpreted without a GPU."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from functools import partial
from unittest import mock

import numpy as np
import pytest
import reference_projection as reference
import torch
from torch import nn

from trakstore.features.factorised import FactorisedEngine
from trakstore.features.footprint import peak_bytes
from trakstore.features.outputs import as_output
from trakstore.features.projectors import (
    Outer,
    Projector,
    make_projector,
    shared_rights,
    waiting_products,
)
from trakstore.features.projectors import sjlt as sjlt_file
from trakstore.features.projectors.kronecker import Kronecker
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


def sharing(first: torch.Tensor, *names: str) -> list[Outer]:
    """Return products that have a right factor in common, as their layers say."""
    generator = torch.Generator().manual_seed(5)
    outers = []
    for name in dict.fromkeys(names):
        left = torch.randn(4, 5, 7, generator=generator).to(DEVICE)
        outers.append(Outer(name, left, lambda a, b: first[a:b], 5, 9, beside=names))
    return outers


@pytest.mark.parametrize(
    ("names", "products"),
    [("abc", 1), ("aab", 2), ("ab-", 1)],
    ids=["three", "one comes twice", "one is not projected"],
)
def test_a_right_factor_of_several_is_read_once(names: str, products: int) -> None:
    shapes = {"a": (7, 9), "b": (7, 9), "c": (7, 9), "-": (7, 1)}
    projector = make_projector(SPEC, ParameterSpec(tuple(shapes.items())))
    right = torch.randn(4, 5, 9, device=DEVICE)
    outers = sharing(right, *names)[: 2 if "-" in names else 3]
    read = mock.Mock(wraps=shared_rights.times)
    apart = [one._replace(beside=()) for one in outers]
    expected, counts = collected(projector, apart)
    with mock.patch.object(shared_rights, "times", read):
        got, same = collected(projector, outers)
    torch.testing.assert_close(got, expected)
    assert counts == same == [len(outers)]
    assert read.call_count == (0 if products > 1 else 1)


def test_another_factor_in_the_same_place_is_told_from_the_first() -> None:
    """Layers may be wrong about what they have in common, as memory may be given again."""
    shapes = {"a": (7, 9), "b": (7, 9)}
    projector = make_projector(SPEC, ParameterSpec(tuple(shapes.items())))
    memory = torch.randn(4, 5, 18, device=DEVICE)
    one, other = memory[:, :, :9], memory[:, :, 9:]
    first, second = sharing(one, "a", "b")
    second = second._replace(make_right=lambda a, b: other[a:b])
    expected, _ = collected(projector, [first, second._replace(beside=())])
    got, _ = collected(projector, [first, second])
    torch.testing.assert_close(got, expected)


def test_a_factor_is_held_until_all_have_come_and_no_longer() -> None:
    shapes = {"a": (7, 9), "b": (7, 9)}
    projector = make_projector(SPEC, ParameterSpec(tuple(shapes.items())))
    assert isinstance(projector, Kronecker)
    rights = shared_rights.SharedRights(projector.right_sides)
    right = torch.randn(4, 5, 9, device=DEVICE)
    gone = weakref.ref(right)
    first, second = sharing(right, "a", "b")
    rights.times(first)
    del right, first
    second = second._replace(make_right=partial(_again, second.make_right(0, 4)))
    rights.times(second)
    del second
    gc.collect()
    assert gone() is None


def _again(right: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    return right[start:stop]


class Heads(nn.Module):
    """Query, key and value of one input, and a layer of another."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8, bias=False) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        attended = torch.softmax(q @ k.mT, -1) @ v
        out: torch.Tensor = self.o(attended).mean(1)
        return out


def test_layers_of_one_input_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = Heads().eval().to(DEVICE), torch.randn(6, 5, 8, device=DEVICE)
    labels = torch.arange(6, device=DEVICE) % 8
    names = tuple(model.state_dict())
    spec = ProjectionSpec("kronecker", dim=16, side=4)
    shapes = ParameterSpec(tuple((n, tuple(p.shape)) for n, p in model.named_parameters()))
    sides, seen = Kronecker.right_sides, []

    def noted(projector: Kronecker, outer: Outer) -> object:
        found = sides(projector, outer)
        seen.append((outer.name, found[0]))
        return found

    monkeypatch.setattr(Kronecker, "right_sides", noted)
    engine = FactorisedEngine(
        model, as_output("margin"), dict(model.named_parameters()), make_projector(spec, shapes)
    )
    with mock.patch.object(sjlt_file, "usable", lambda *_: False):
        expected = engine.rows((data, labels)).features
    assert not seen
    got = engine.rows((data, labels)).features
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    together = {name: sorted(own) for name, own in seen}
    attention = [n for n in names if not n.startswith("o")]
    assert together == {**dict.fromkeys(attention, sorted(attention)), "o.weight": ["o.weight"]}

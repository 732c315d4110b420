"""Small pieces of a pass, added together by one kernel: interpreted where there is no GPU."""

from __future__ import annotations

import random

import numpy as np
import pytest
import reference_projection as reference
import torch

from trakstore.features.projectors import SJLT, Outer, Piece, Projector, Rows, make_projector
from trakstore.features.projectors import sjlt as sjlt_file
from trakstore.spec import ParameterSpec, ProjectionSpec

pytest.importorskip("triton", reason="kernels need Triton, which there is for Linux")
from trakstore.features.projectors.triton import listed

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SHAPES = {"norm": (40,), "w": (6, 30), "bias": (7,), "scale": ()}
PARAMETERS = ParameterSpec(tuple(SHAPES.items()))
SPECS = [
    ProjectionSpec("sjlt", dim=16),
    ProjectionSpec("sjlt", dim=50, s=3),
    ProjectionSpec("kronecker", dim=20, side=3),
]


@pytest.fixture(autouse=True)
def kernels_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sjlt_file, "usable", lambda device, _=7: device.type == DEVICE.type)


def pieces_and_gradients() -> tuple[list[Piece], dict[str, torch.Tensor]]:
    """Of 9 samples; of the bias both halves by themselves, of the weight a product."""
    generator = torch.Generator().manual_seed(0)
    g = {n: torch.randn(9, *s, generator=generator) for n, s in SHAPES.items() if n != "w"}
    left, right = (torch.randn(9, 4, n, generator=generator) for n in (6, 30))
    there = right.to(DEVICE)
    pieces: list[Piece] = [
        Rows("norm", g["norm"][:, :, None].to(DEVICE)),
        Rows("bias", g["bias"][:, 3:, None].to(DEVICE), 3),
        Outer("w", left.to(DEVICE), lambda a, b: there[a:b], 4, 30),
        Rows("scale", g["scale"][:, None, None].to(DEVICE)),
        Rows("bias", g["bias"][:, :3, None].to(DEVICE), 0),
    ]
    return pieces, {**g, "w": left.mT @ right}


def collected(projector: Projector, pieces: list[Piece], out: torch.Tensor) -> None:
    collecting = projector.collecting()
    for piece in pieces:
        collecting.add(out, piece)
    collecting.finish()


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_small_pieces_are_added_together(
    spec: ProjectionSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches = []
    add = listed.add_listed
    monkeypatch.setattr(listed, "add_listed", lambda *given: launches.append(add(*given)))
    pieces, g = pieces_and_gradients()
    out = torch.ones(9, spec.dim or 0, device=DEVICE)
    collected(make_projector(spec, PARAMETERS), pieces, out)
    flat = torch.cat([g[name].reshape(9, -1) for name in SHAPES], 1).double().numpy()
    expected = flat @ reference.matrix(spec, SHAPES)
    assert np.abs(out.cpu().numpy() - 1 - expected).max() <= 1e-5 * np.abs(expected).max()
    assert len(launches) == 1


def test_factors_of_a_scale_are_in_the_list() -> None:
    pieces, g = pieces_and_gradients()
    generator = torch.Generator().manual_seed(1)
    sides = {
        name: tuple(torch.rand(n, generator=generator) + 0.5 for n in shape)
        for name, shape in make_projector(SPECS[1], PARAMETERS).matrices.items()
    }
    for spec in SPECS:
        plain = make_projector(spec, PARAMETERS)
        scaled = plain.of_scaled(sides)  # type: ignore[arg-type]
        assert scaled
        out = torch.zeros(9, spec.dim or 0, device=DEVICE)
        collected(scaled, pieces, out)
        flat = [
            (g[n].reshape(9, len(sides[n][0]), -1) * sides[n][0][:, None] * sides[n][1]).flatten(1)
            for n in SHAPES
        ]
        expected = torch.cat(flat, 1).double().numpy() @ reference.matrix(spec, SHAPES)
        assert np.abs(out.cpu().numpy() - expected).max() <= 1e-5 * np.abs(expected).max()


def test_lists_of_sets_that_are_new_in_every_batch_do_not_pile_up() -> None:
    shapes = {f"b{i}": (8 + i,) for i in range(8)}
    spec, generator = ProjectionSpec("sjlt", dim=16, s=2), random.Random(0)
    projector = make_projector(spec, ParameterSpec(tuple(shapes.items())))
    assert isinstance(projector, SJLT)
    p, size = reference.matrix(spec, shapes), np.cumsum([0, *(n for (n,) in shapes.values())])
    sets = [tuple(generator.sample(range(8), 3)) for _ in range(40)]
    assert len(set(sets)) > 30
    for batch, own in enumerate([*sets, sets[0], sets[-1]]):
        out = torch.zeros(2, 16, device=DEVICE)
        tiles = [torch.randn(2, 8 + i, 1, device=DEVICE) for i in own]
        collected(projector, [Rows(f"b{i}", t) for i, t in zip(own, tiles, strict=True)], out)
        if batch in (0, 39, 40, 41):  # also of a set whose list was dropped
            parts = zip(own, tiles, strict=True)
            each = [t[:, :, 0].double().cpu().numpy() @ p[size[i] : size[i + 1]] for i, t in parts]
            np.testing.assert_allclose(out.cpu(), sum(each), rtol=1e-5, atol=1e-5)
    assert len(projector._lists) == 16


def test_pieces_of_other_outputs_are_apart() -> None:
    projector = make_projector(SPECS[0], PARAMETERS)
    pieces, _ = pieces_and_gradients()
    outs = torch.zeros(2, 9, 16, device=DEVICE)
    collecting = projector.collecting()
    collecting.add(outs[0], pieces[0])
    collecting.add(outs[1], pieces[1])
    collecting.finish()
    for out, piece in zip(outs, pieces, strict=False):
        alone = torch.zeros(9, 16, device=DEVICE)
        projector.add_piece(alone, piece)
        torch.testing.assert_close(out, alone)

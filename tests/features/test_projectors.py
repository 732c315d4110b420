"""Each projector against its definition, materialised; and against what it is for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference_projection as reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trakstore.errors import SpecMismatchError, TrakStoreError
from trakstore.features.projectors import _KINDS, SJLT, Gathered, Outer, make_projector
from trakstore.features.projectors.projector import as_matrix
from trakstore.features.projectors.sketching import evaluate
from trakstore.spec import ParameterSpec, ProjectionSpec

SLOW_GAUSSIAN = pytest.param("gaussian", marks=pytest.mark.slow)  # hundreds of seeds
SHAPES: dict[str, tuple[int, ...]] = {
    "conv.weight": (4, 3, 2, 2),
    "conv.bias": (4,),
    "head.weight": (3, 40),
    "scale": (),
}
PARAMETERS = ParameterSpec(tuple(SHAPES.items()))
SPECS = [
    ProjectionSpec("sjlt", dim=16),
    ProjectionSpec("sjlt", dim=7, seed=2**64 - 1, s=3),
    ProjectionSpec("sjlt", dim=1),
    ProjectionSpec("rademacher", dim=33, seed=5),
    ProjectionSpec("gaussian", dim=9, seed=5),
    ProjectionSpec("kronecker", dim=12, side=3),
    ProjectionSpec("kronecker", dim=12, side=1),
    ProjectionSpec("kronecker", dim=500),
    ProjectionSpec("identity"),
]


def gradients(batch: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(batch, *shape, generator=generator) for n, shape in SHAPES.items()}


def flat(g: dict[str, torch.Tensor]) -> np.ndarray[Any, Any]:
    return torch.cat([one.reshape(len(one), -1) for one in g.values()], dim=1).double().numpy()


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_it_is_the_matrix_of_its_definition(spec: ProjectionSpec) -> None:
    g = gradients(5)
    expected = flat(g) @ reference.matrix(spec, SHAPES)
    got = make_projector(spec, PARAMETERS).project(g).numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_tiles_of_rows_add_up(spec: ProjectionSpec) -> None:
    projector = make_projector(spec, PARAMETERS)
    g = gradients(3)["head.weight"]
    whole, tiled = (torch.zeros(3, projector.dim) for _ in range(2))
    projector.add(whole, "head.weight", g)
    projector.add(tiled, "head.weight", g[:, :1], first_row=0)
    projector.add(tiled, "head.weight", g[:, 1:], first_row=1)
    torch.testing.assert_close(whole, tiled)


def test_the_published_test_vectors() -> None:
    expected = {
        "sjlt": [-13, 14, -20, -5, -5, 5, -16, -12],
        "rademacher": [
            4.24264,
            13.43503,
            14.14214,
            -11.31371,
            -7.07107,
            2.12132,
            -2.82843,
            12.02082,
        ],
        "gaussian": [
            11.76725,
            5.03786,
            -32.21977,
            0.33849,
            13.34819,
            8.81674,
            -15.48789,
            2.27821,
        ],
        "kronecker": [-10, 13, 0, 0, 0, 0, -30, 39],
    }
    weight = ParameterSpec((("weight", (3, 5)),))
    g = torch.arange(1.0, 16.0).reshape(1, 3, 5)
    for kind, vector in expected.items():
        side = 2 if kind == "kronecker" else None
        spec = ProjectionSpec(kind, dim=8, side=side)  # type: ignore[arg-type]
        projector = make_projector(spec, weight)
        np.testing.assert_allclose(projector.project({"weight": g})[0], vector, atol=1e-5)


def test_a_projector_that_changed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from trakstore.features.projectors import sjlt

    monkeypatch.setattr(sjlt, "hash1", lambda a, _: a)
    with pytest.raises(SpecMismatchError, match="published test"):
        make_projector(ProjectionSpec("sjlt", dim=16), PARAMETERS)


def test_a_store_with_other_test_vectors_is_refused() -> None:
    document = ProjectionSpec("sjlt", dim=16).to_dict()
    document["test_vector"][0] += 1
    with pytest.raises(SpecMismatchError, match="not one projection"):
        ProjectionSpec.from_dict(document)


@pytest.mark.parametrize("kind", ["sjlt", "sjlt-3", "rademacher", SLOW_GAUSSIAN, "kronecker"])
def test_inner_products_are_unbiased_with_the_known_variance(kind: str) -> None:
    """Mean over seeds within 4 standard errors; k·Var at most ‖g‖²‖h‖² + <g,h>² (1.3 for noise)."""
    seeds, dim = 600, 16
    g = gradients(2, seed=3)
    g = {n: torch.stack([one[0], one[0] + 0.5 * one[1]]) for n, one in g.items()}
    x, y = flat(g)
    products = np.empty(seeds)
    name, _, s = kind.partition("-")
    for seed in range(seeds):
        spec = ProjectionSpec(name, dim=dim, seed=seed, s=int(s or 1))  # type: ignore[arg-type]
        a, b = make_projector(spec, PARAMETERS).project(g).double().numpy()
        products[seed] = a @ b
    error = products.std() / seeds**0.5
    assert abs(products.mean() - x @ y) < 4 * error
    assert products.var() * dim < 1.3 * (x @ x * (y @ y) + (x @ y) ** 2)
    assert error < 0.2 * (x @ y)


@pytest.mark.parametrize("spec", SPECS, ids=str)
@settings(deadline=None, max_examples=15)
@given(
    batch=st.integers(1, 5),
    positions=st.integers(1, 70),
    rows=st.integers(1, 9),
    columns=st.integers(1, 70),
    first=st.integers(0, 3),
    turned=st.booleans(),
)
def test_products_of_factors_are_projected_like_their_tiles(
    spec: ProjectionSpec,
    batch: int,
    positions: int,
    rows: int,
    columns: int,
    first: int,
    turned: bool,
) -> None:
    """Every evaluation, contiguous or not, of all rows or some: the same P."""
    shapes = ParameterSpec((("w", (rows + first + 1, columns)),))
    projector = make_projector(spec, shapes)
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(batch, positions, rows, generator=generator)
    if turned:
        left = left.transpose(1, 2).contiguous().transpose(1, 2)
    right = torch.randn(batch, positions, columns, generator=generator)
    outer = Outer("w", left, lambda lo, hi: right[lo:hi], positions, columns, first)
    expected, got = (torch.zeros(batch, projector.dim) for _ in range(2))
    gradient = left.transpose(1, 2) @ right
    projector.add(expected, "w", gradient, first)
    projector.add_outer(got, outer)
    # A number of a feature is a sum with signs, and its rounding is relative to what is summed, which
    # may cancel: E[PᵀP] = I makes its typical size the gradient's norm over the root of dim.
    typical = float(gradient.flatten(1).norm(dim=1).max()) / projector.dim**0.5
    assert (got - expected).abs().max() <= 2e-5 * max(typical, float(expected.abs().max()))


@pytest.mark.parametrize("kind", ["direct", "tiles", "fourier"])
@pytest.mark.parametrize(("rows", "columns", "dim"), [(30, 50, 16), (7, 5, 64), (64, 129, 1)])
def test_evaluations_of_a_sketch(kind: Any, rows: int, columns: int, dim: int) -> None:
    spec, generator = ProjectionSpec("sjlt", dim=dim, s=2), torch.Generator().manual_seed(0)
    projector = SJLT(spec, ParameterSpec((("w", (rows, columns)),)))
    left = torch.randn(3, 4, rows, generator=generator)
    right = torch.randn(3, 4, columns, generator=generator)
    outer = Outer("w", left, lambda lo, hi: right[lo:hi], 4, columns)
    expected, got = (torch.zeros(3, dim) for _ in range(2))
    projector.add(expected, "w", left.transpose(1, 2) @ right)
    evaluate(kind, got, outer, projector._merged_rows_of("w", 0, rows), 0, 3)
    assert (got - expected).abs().max() <= 2e-5 * expected.abs().max()


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_gathered_rows_are_projected_like_whole_gradients(spec: ProjectionSpec) -> None:
    projector = make_projector(spec, ParameterSpec((("w", (50, 40)),)))
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(0, 50, (3, 6), generator=generator)
    values = torch.randn(3, 6, 40, generator=generator)
    whole = torch.zeros(3, 50, 40)
    for b in range(3):
        whole[b].index_add_(0, index[b], values[b])
    expected, got = (torch.zeros(3, projector.dim) for _ in range(2))
    projector.add(expected, "w", whole)
    projector.add_gathered(got, Gathered("w", index, values))
    assert (got - expected).abs().max() <= 2e-5 * expected.abs().max()


@pytest.mark.parametrize("kind", ["tile", "outer", "gathered"])
def test_rows_outside_a_parameter_are_refused(kind: str) -> None:
    projector = SJLT(ProjectionSpec("sjlt", dim=8), ParameterSpec((("w", (4, 3)),)))
    out, x = torch.zeros(2, 8), torch.ones(2, 5, 3)
    with pytest.raises(RuntimeError, match="not in parameter 'w'"):
        if kind == "tile":
            projector.add(out, "w", x)
        elif kind == "outer":
            projector.add_outer(out, Outer("w", x, lambda lo, hi: x[lo:hi], 5, 3, first_row=2))
        else:
            projector.add_gathered(out, Gathered("w", torch.full((2, 5), 4), x))


def test_the_sketch_in_plain_torch_is_the_same() -> None:
    projector = SJLT(ProjectionSpec("sjlt", dim=8, s=2), PARAMETERS)
    for name, g in gradients(3).items():
        tile = g.reshape(3, *as_matrix(SHAPES[name]))
        one, other = torch.zeros(3, 8), torch.zeros(3, 8)
        projector.add(one, name, tile)
        projector._rotate(other, name, tile, 0)
        torch.testing.assert_close(one, other)


ADVERSARIAL = {
    "one huge coordinate": [1e4, *[1.0] * 99],
    "all equal": [1.0] * 100,
    "sparse": [*[1.0] * 4, *[0.0] * 96],
    "one row": [*[1.0] * 10, *[0.0] * 90],
    "one column": [1.0, *[0.0] * 9] * 10,
}


@pytest.mark.parametrize("vector", ADVERSARIAL)
@pytest.mark.parametrize("kind", ["sjlt", "sjlt-4", "rademacher", SLOW_GAUSSIAN, "kronecker"])
def test_norms_are_unbiased_for_adversarial_gradients(kind: str, vector: str) -> None:
    """Mean over seeds of ‖Pg‖² within 4 standard errors of ‖g‖²; variance within 1.5 x its bound.

    Var·k <= 2‖g‖⁴ of dense projections, 3·2‖g‖⁴ of TensorSketch.
    """
    seeds, dim = 200, 16
    g = torch.tensor(ADVERSARIAL[vector]).reshape(1, 10, 10)
    name, _, s = kind.partition("-")
    norms = np.empty(seeds)
    for seed in range(seeds):
        side = 4 if name == "kronecker" else None
        spec = ProjectionSpec(name, dim=dim, seed=seed, s=int(s or 1), side=side)  # type: ignore[arg-type]
        projector = _KINDS[spec.kind](spec, ParameterSpec((("w", (10, 10)),)))
        norms[seed] = projector.project({"w": g}).double().square().sum()
    true = float(g.double().square().sum())
    assert abs(norms.mean() - true) <= 4 * norms.std() / seeds**0.5 + 1e-5 * true
    bound = (2 if name in ("rademacher", "gaussian") else 6) / dim
    if name == "kronecker":  # E‖LX‖⁴ <= (1 + 2/side)‖X‖⁴ for each of two sides, then the sketch's
        bound = (1 + 2 / 4) ** 2 * (1 + bound) - 1
    assert norms.var() <= 1.5 * bound * true**2


@settings(deadline=None, max_examples=25)
@given(rows=st.integers(1, 9), rest=st.integers(1, 60), dim=st.integers(1, 40), s=st.integers(1, 3))
def test_sjlt_of_any_shape(rows: int, rest: int, dim: int, s: int) -> None:
    shapes = {"w": (rows, rest)}
    spec = ProjectionSpec("sjlt", dim=dim, seed=1, s=s)
    g = torch.randn(2, rows, rest, generator=torch.Generator().manual_seed(0))
    got = make_projector(spec, ParameterSpec(tuple(shapes.items()))).project({"w": g})
    expected = flat({"w": g}) @ reference.matrix(spec, shapes)
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_parameters_with_another_name_or_shape_get_another_projection() -> None:
    spec = ProjectionSpec("sjlt", dim=64)
    g = torch.ones(1, 24)
    images = []
    for name, shape in [("a", (4, 6)), ("b", (4, 6)), ("a", (6, 4))]:
        projector = make_projector(spec, ParameterSpec(((name, shape),)))
        images.append(projector.project({name: g.reshape(1, *shape)}).numpy())
    assert not np.array_equal(images[0], images[1])
    assert not np.array_equal(images[0], images[2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "sljt", "dim": 3}, "unknown projection"),
        ({"kind": "sjlt"}, "needs dim"),
        ({"kind": "sjlt", "dim": 0}, "dim must be"),
        ({"kind": "sjlt", "dim": 4, "s": 0}, "s counts"),
        ({"kind": "rademacher", "dim": 4, "s": 2}, "s counts"),
        ({"kind": "sjlt", "dim": 4, "side": 2}, "side is a kronecker's"),
        ({"kind": "kronecker", "dim": 4, "side": 0}, "side is a kronecker's"),
        ({"kind": "sjlt", "dim": 4, "seed": -1}, "seed must be"),
        ({"kind": "identity", "seed": 1}, "no seed"),
        ({"kind": "sjlt", "dim": 4, "version": 9}, "no version 9"),
    ],
)
def test_bad_specs(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TrakStoreError, match=message):
        ProjectionSpec(**arguments)


def test_nothing_needs_triton_on_the_cpu(tmp_path: Path) -> None:
    """Torch for the CPU comes without it."""
    program = f"""
import sys
sys.modules["triton"] = None
import torch
from torch import nn
from torch.utils.data import TensorDataset
import trakstore as ts
from trakstore.features import Job, featurize_job
torch.manual_seed(0)
layers = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.LayerNorm(12)
model = nn.Sequential(*layers, nn.Linear(12, 3))
data = TensorDataset(torch.rand(20, 1, 4, 4), torch.randint(3, (20,)))
for kind in "sjlt", "kronecker", "rademacher", "gaussian":
    spec = ts.ProjectionSpec(kind, dim=16)
    job = Job(model, {{"train": data}}, projector=spec, scale="samples", sampled=2)
    print(featurize_job(job, {str(tmp_path)!r} + "/" + kind, progress=False).rows)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["60"] * 4  # each sample, and two draws of its label

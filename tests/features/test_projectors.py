"""Each projector against its definition, materialised; and against what it is for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference_projection as reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trakstore.errors import SpecMismatchError, TrakStoreError
from trakstore.features.projectors import make_projector
from trakstore.spec import ParameterSpec, ProjectionSpec

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
    }
    weight = ParameterSpec((("weight", (3, 5)),))
    g = torch.arange(1.0, 16.0).reshape(1, 3, 5)
    for kind, vector in expected.items():
        projector = make_projector(ProjectionSpec(kind, dim=8), weight)  # type: ignore[arg-type]
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


@pytest.mark.parametrize("kind", ["sjlt", "sjlt-3", "rademacher"])
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
        ({"kind": "sjlt", "dim": 4, "seed": -1}, "seed must be"),
        ({"kind": "identity", "seed": 1}, "no seed"),
        ({"kind": "sjlt", "dim": 4, "version": 9}, "no version 9"),
    ],
)
def test_bad_specs(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TrakStoreError, match=message):
        ProjectionSpec(**arguments)

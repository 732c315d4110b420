"""Products of factors that are sketched on the chip, against the definition of P."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference_projection as reference
import torch

from trakstore.features.projectors import SJLT, Outer
from trakstore.features.projectors.sheared import COLUMNS, ROWS, WINDOW, Sheared, pays
from trakstore.spec import ParameterSpec, ProjectionSpec

pytest.importorskip("triton", reason="kernels need Triton, which there is for Linux")
from trakstore.features.projectors.triton.shear import add_sheared

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
CPU = torch.device("cpu")
# positions, rows, columns, dim, copies: odd ones, runs that wrap around, several of them, merged rows
SHAPES = [
    (5, 9, 33, 256, 1),
    (70, 40, 300, 257, 1),
    (1, 300, 129, 256, 2),
    (3, 7, 700, 300, 1),
]


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator).to(dtype)


def of_rows(projector: SJLT, first: int, last: int, device: torch.device = DEVICE) -> Sheared:
    return projector._sheared_rows_of("w", first, last, device)


def added(
    projector: SJLT, left: torch.Tensor, right: torch.Tensor, first: int, dtype: torch.dtype
) -> np.ndarray[Any, Any]:
    left, right = left.to(DEVICE), right.to(DEVICE)
    outer = Outer("w", left, lambda a, b: right[a:b], right.shape[1], right.shape[2], first)
    out = torch.ones(len(left), projector.dim, device=DEVICE)
    table = of_rows(projector, first, first + left.shape[2])
    add_sheared(out, outer, table, projector.spec.s**-0.5, dtype)
    return out.cpu().numpy() - 1


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("positions", "rows", "columns", "dim", "copies"), SHAPES)
def test_a_product_is_sketched_as_its_definition_says(
    positions: int, rows: int, columns: int, dim: int, copies: int, turned: bool
) -> None:
    spec, shape = ProjectionSpec("sjlt", dim=dim, seed=5, s=copies), (rows + 3, columns)
    left, right = draw(3, positions, rows), draw(3, positions, columns)
    if turned:  # as of a convolution
        left, right = (one.mT.contiguous().mT for one in (left, right))
    got = added(SJLT(spec, ParameterSpec((("w", shape),))), left, right, 2, torch.float32)
    g = (left.double().mT @ right.double()).flatten(1).numpy()
    expected = g @ reference.matrix(spec, {"w": shape})[2 * columns : (2 + rows) * columns]
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_factors_of_16_bits_are_rounded_and_nothing_else(dtype: torch.dtype) -> None:
    spec, shape = ProjectionSpec("sjlt", dim=300), (50, 200)
    left, right = draw(2, 17, 50, dtype=dtype), draw(2, 17, 200, dtype=dtype)
    projector = SJLT(spec, ParameterSpec((("w", shape),)))
    got = added(projector, left, right, 0, dtype)
    exact = (left.double().mT @ right.double()).flatten(1).numpy() @ reference.matrix(
        spec, {"w": shape}
    )
    # On a GPU a row that is the sum of others is rounded once more, as every operand is.
    allowed = float(torch.finfo(dtype).eps) if GPU else 1e-5
    assert np.linalg.norm(got - exact) <= allowed * np.linalg.norm(exact)


def test_factors_of_a_scale_are_in_the_tables() -> None:
    spec, shape = ProjectionSpec("sjlt", dim=256), (30, 140)
    left, right = draw(2, 4, 30), draw(2, 4, 140)
    sides = draw(30).abs(), draw(140).abs()
    projector = SJLT(spec, ParameterSpec((("w", shape),)), {"w": sides})
    got = added(projector, left, right, 0, torch.float32)
    g = left.double().mT @ right.double() * sides[0][:, None] * sides[1]
    expected = g.flatten(1).numpy() @ reference.matrix(spec, {"w": shape})
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("rows", "columns", "dim"), [(2000, 50, 512), (300, 1000, 700), (1, 5, 256)]
)
def test_every_row_has_one_slot_in_a_group_within_its_window(
    rows: int, columns: int, dim: int
) -> None:
    projector = SJLT(ProjectionSpec("sjlt", dim=dim, s=2), ParameterSpec((("w", (rows, columns)),)))
    table, runs = of_rows(projector, 0, rows, CPU), -(-columns // dim)
    assert table.slots % ROWS == 0 and len(table.runs) == table.slots // ROWS
    assert int(table.shifts.max()) <= WINDOW - COLUMNS and int(table.shifts.min()) >= 0
    counts = table.first.diff()
    slot = torch.repeat_interleave(torch.arange(table.slots), counts)
    run, copy = table.runs[slot // ROWS, 0] // dim, table.runs[slot // ROWS, 2] // columns
    seen = set(zip(table.rows.tolist(), run.tolist(), copy.tolist(), strict=True))
    assert len(seen) == len(table.rows) == rows * runs * 2
    offset = table.bases[slot // table.group] + table.shifts[slot]
    for which, own in enumerate(projector._tables_of("w")):
        mine = copy == which
        expected = own.offsets[table.rows[mine], run[mine]]
        np.testing.assert_array_equal(offset[mine], expected)
        np.testing.assert_array_equal(
            table.signs[mine], own.signs[table.rows[mine].long(), run[mine].long()]
        )


def test_it_pays_where_tiles_are_full_and_rows_are_merged() -> None:
    def chosen(positions: int, rows: int, columns: int, dim: int) -> bool:
        projector = SJLT(ProjectionSpec("sjlt", dim=dim), ParameterSpec((("w", (rows, columns)),)))
        return pays(of_rows(projector, 0, rows, CPU), positions, rows, columns)

    assert chosen(512, 5632, 2048, 4096) and chosen(512, 2048, 5632, 4096)
    assert chosen(512, 32000, 2048, 4096)
    assert not chosen(512, 256, 2048, 4096), "groups would be nearly empty"
    assert not chosen(512, 2048, 2048, 1 << 20), "offsets are far from one another"


@pytest.mark.skipif(not GPU, reason="needs a CUDA device")
def test_on_a_gpu_each_run_gives_the_same_bits() -> None:
    projector = SJLT(ProjectionSpec("sjlt", dim=2048), ParameterSpec((("w", (3000, 2500)),)))
    left = draw(9, 300, 3000, dtype=torch.bfloat16)
    right = draw(9, 300, 2500, dtype=torch.bfloat16)
    first = added(projector, left, right, 0, torch.bfloat16)
    for _ in range(5):
        np.testing.assert_array_equal(added(projector, left, right, 0, torch.bfloat16), first)

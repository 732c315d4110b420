"""Factors as tensor cores want them. Meta tensors take the way of a GPU, without numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from trakstore.features.layers import convolution
from trakstore.features.projectors import Outer, make_projector
from trakstore.features.projectors.products import Side, aligned, low_dtype, times, wide_bmm
from trakstore.features.projectors.thin_factors import ThinFactors
from trakstore.spec import ParameterSpec, ProjectionSpec

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


def starts(x: torch.Tensor) -> bool:
    """Tell whether every row of memory begins at a multiple of 16 bytes."""
    steps = [step for step in x.stride() if step != 1]
    return all(step % 8 == 0 for step in (*steps, x.storage_offset()))


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("positions", "count", "first"), [(16, 24, 0), (5, 9, 0), (16, 24, 3)])
def test_aligned_factors_are_the_same_with_zeros_behind(
    positions: int, count: int, first: int, turned: bool
) -> None:
    whole = torch.randn(3, positions, count + first).to(BF16)
    x = (whole.mT.contiguous().mT if turned else whole)[:, :, first:]
    got = aligned(x)
    assert starts(got) and torch.equal(got[:, :, :count], x)
    assert not got[:, :, count:].any() and got.shape[2] - count < 8
    assert (got.data_ptr() == x.data_ptr()) == (positions == 16 and (first == 0 or turned))


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [(BF16, F32, BF16), (F32, BF16, BF16), (F16, F16, F16), (F16, F32, None), (F32, F32, None)],
)
def test_products_are_in_16_bits_where_that_loses_no_number(
    left: torch.dtype, right: torch.dtype, expected: torch.dtype | None
) -> None:
    a, b = torch.empty(1, dtype=left, device="meta"), torch.empty(1, dtype=right, device="meta")
    assert low_dtype(a, b) == expected
    assert low_dtype(torch.empty(1, dtype=left), torch.empty(1, dtype=right)) is None


def test_gradients_of_low_factors_are_float32_in_whole_tiles() -> None:
    left, right = (torch.empty(8, 512, n, dtype=BF16, device="meta") for n in (2048, 5632))
    outer = Outer("w", left, lambda a, b: right[a:b], 512, 5632)
    spec, shapes = ProjectionSpec("rademacher", dim=8), ParameterSpec((("w", (2048, 5632)),))
    projector, tiles = make_projector(spec, shapes), list[tuple[torch.Tensor, int]]()
    projector.add = lambda *given: tiles.append((given[2], given[3]))  # type: ignore[method-assign]
    projector.add_outer(torch.empty(8, 8, device="meta"), outer)
    assert [row for _, row in tiles] == [0, 1472], "a tile begins at a multiple of 64 rows"
    assert sum(tile.shape[1] for tile, _ in tiles) == 2048
    assert {tile.dtype for tile, _ in tiles} == {F32}


def test_products_with_a_side_are_those_of_float32() -> None:
    a, b = torch.randn(2, 3, 4), torch.randn(4, 5)
    for x in (a, a.mT.contiguous().mT, a.to(BF16)):
        product, unit = times(x, Side.of(b))
        torch.testing.assert_close(product * unit, x.float() @ b)
    product, _ = times(a[:, :, 1:], Side.of(b), slice(1, 4))
    torch.testing.assert_close(product, a[:, :, 1:] @ b[1:])
    torch.testing.assert_close(wide_bmm(a, b.expand(2, 4, 5)), a @ b)
    product, unit = times(a.to(BF16).to("meta"), Side.of(b.to("meta")))
    assert product.dtype == F32 and unit == 5**-0.5


@pytest.mark.parametrize("side", [16, 32, 50])
def test_signs_over_a_root_are_exact_in_16_bits(side: int) -> None:
    signs = torch.tensor([1.0, -1.0] * side).reshape(2, side) / side**0.5
    one = Side.of(signs)
    assert set(one.in_units(BF16).flatten().tolist()) == {1.0, -1.0}
    torch.testing.assert_close(one.in_units(BF16).float() * one.unit, signs, rtol=1e-7, atol=0)


@pytest.mark.parametrize("positions", [1, 3])
def test_a_unit_is_multiplied_with_the_product(positions: int) -> None:
    left, right = torch.randn(2, positions, 4), torch.randn(2, positions, 5)
    for unit in (1.0, 0.25):
        product = ThinFactors(left, right, unit).multiplied()
        torch.testing.assert_close(product, left.mT @ right * unit)


def test_a_convolution_of_one_side_is_padded_as_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU no padded copy is made; on the CPU it is, so that features keep their last bits."""
    shape = convolution.Geometry((3, 3), (2, 1), (1, 2), (1, 2), (1, 1), 1)
    layer = convolution.Convolution(torch.zeros(2, 4, 8, 9), None, None, shape)
    x, matrix = torch.randn(2, 1, 4, 8, 9), torch.randn(36, 5)
    expected = shape.unfolded(x[:, 0]) @ matrix
    torch.testing.assert_close(layer._filtered(x, 0, 2, matrix), expected, rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(F, "pad", lambda *_: pytest.fail("a padded copy is made"))
    on_gpu = layer._filtered(x.to("meta"), 0, 2, matrix.to("meta"))
    assert on_gpu.shape == expected.shape

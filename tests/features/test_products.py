"""Factors as tensor cores want them. Meta tensors take the way of a GPU, without numbers."""

from __future__ import annotations

import pytest
import torch

from trakstore.features.projectors import Outer, make_projector
from trakstore.features.projectors.products import aligned, low_dtype, times, wide_bmm
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


def test_products_with_a_matrix_are_those_of_float32() -> None:
    a, b = torch.randn(2, 3, 4), torch.randn(4, 5)
    torch.testing.assert_close(times(a, b), a @ b)
    torch.testing.assert_close(times(a.mT.contiguous().mT, b), a @ b)
    torch.testing.assert_close(times(a.to(BF16), b), a.to(BF16).float() @ b)
    torch.testing.assert_close(wide_bmm(a, b.expand(2, 4, 5)), a @ b)
    assert times(a.to(BF16).to("meta"), b.to("meta")).dtype == F32


@pytest.mark.parametrize("side", [16, 32, 50])
def test_signs_over_a_root_are_exact_in_16_bits(side: int) -> None:
    signs = torch.tensor([1.0, -1.0] * side).reshape(2, side) / side**0.5
    low = (signs / side**-0.5).to(BF16)
    torch.testing.assert_close(low.float() * side**-0.5, signs, rtol=1e-7, atol=0)

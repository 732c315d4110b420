"""Sums over positions by a kernel, interpreted where there is no GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from trakstore.features.layers import MATCHERS, Call, summed_positions
from trakstore.features.layers.summed_positions import Statistics
from trakstore.features.projectors import Rows

pytest.importorskip("triton", reason="kernels need Triton, which there is for Linux")

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def kernels_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summed_positions, "usable", lambda device: device.type == DEVICE.type)


def draw(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator).to(DEVICE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 1, 70, 9), (3, 2, 5, 4, 65), (2, 1, 130)])
def test_sums_of_the_last_dimension(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    g, x = draw(*shape).to(dtype), draw(*shape[::-1]).permute(*range(len(shape))[::-1]).to(dtype)
    got = summed_positions.position_sums(g, x, channels=False, alone=True)
    assert got
    middle = list(range(1, len(shape) - 1))
    torch.testing.assert_close(got[0], (g.float() * x.float()).sum(middle), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got[1], g.float().sum(middle), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 1, 70, 9), (3, 1, 5, 8, 9), (4, 1, 70)])
def test_sums_of_channels(shape: tuple[int, ...]) -> None:
    g, x = draw(*shape), draw(*shape) + 1
    got = summed_positions.position_sums(g, x, channels=True, alone=True)
    assert got
    products, sums_of_g = ((one[:, 0, :, None].flatten(2)).sum(2) for one in (g * x, g))
    torch.testing.assert_close(got[0], products, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got[1], sums_of_g, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_are_normalised_as_they_are_read(dtype: torch.dtype) -> None:
    """Far from zero, where a product with them as they are would lose all digits of 16 bits."""
    g, x = draw(3, 1, 70, 9).to(dtype), (draw(3, 1, 70, 9) + 20).to(dtype)
    statistics = Statistics(draw(70) + 20, draw(70).abs() + 0.1, 1e-3)
    got = summed_positions.position_sums(g, x, channels=True, alone=True, statistics=statistics)
    assert got
    mean, variance, eps = statistics
    normal = (x.double()[:, 0] - mean.double()[:, None]) / (variance + eps).sqrt()[:, None]
    expected = (g.double()[:, 0] * normal).sum(2).float()
    torch.testing.assert_close(got[0], expected, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(got[1], g.float()[:, 0].sum(2), rtol=1e-5, atol=1e-5)


def test_a_batch_norm_writes_no_normalised_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    x, (weight, bias) = draw(4, 5, 6), scales(5)
    args = batch_norm(x, weight, bias)
    layer = MATCHERS[F.batch_norm](Call(args, {}, {id(weight): "weight", id(bias): "bias"}))
    assert layer
    monkeypatch.setattr(F, "batch_norm", lambda *_, **__: pytest.fail("it is normalised again"))
    pieces = list(layer.pieces((x.unsqueeze(1),), draw(4, 1, 5, 6)))
    assert [piece.name for piece in pieces] == ["weight", "bias"]  # type: ignore[union-attr]


def test_what_the_kernel_does_not_do_is_left_to_torch() -> None:
    g = draw(3, 2, 5, 4)
    assert summed_positions.position_sums(g, g, channels=True, alone=True) is None, (
        "entries are in between"
    )
    assert summed_positions.position_sums(g, g.double(), channels=False, alone=True) is None
    assert summed_positions.position_sums(g, g[..., :1], channels=False, alone=True) is None


def scales(*shape: int) -> list[torch.Tensor]:
    return [draw(*shape).requires_grad_() for _ in range(2)]


def batch_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> tuple[Any, ...]:
    return x, x.mean((0, 2)), x.var((0, 2)), weight, bias


def batch_norm_of_rows(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> Any:
    rows = x[:, 0]
    return rows, rows.mean(0), rows.var(0), weight, bias


CALLS: dict[str, tuple[Any, int, Any]] = {
    "layer norm": (F.layer_norm, 6, lambda x, w, b: (x, (6,), w, b)),
    "rms norm": (F.rms_norm, 6, lambda x, w, _: (x, (6,), w)),
    "batch norm": (F.batch_norm, 5, batch_norm),
    "batch norm of rows": (F.batch_norm, 6, batch_norm_of_rows),
    "product": (torch.mul, 6, lambda x, w, _: (x, w)),
}


@pytest.mark.parametrize("name", CALLS)
def test_gradients_of_scales_and_biases_are_those_of_autograd(name: str) -> None:
    function, width, arguments = CALLS[name]
    x, (weight, bias) = draw(4, 5, 6), scales(width)
    args = arguments(x, weight, bias)
    used = {
        id(one): n for n, one in (("weight", weight), ("bias", bias)) if any(one is a for a in args)
    }
    layer = MATCHERS[function](Call(args, {}, used))
    assert layer
    out = function(*args)
    gradient = draw(*out.shape) + 0.5
    ready = tuple(one.detach().unsqueeze(1) for one in layer.inputs)
    pieces = list(layer.pieces(ready, gradient.unsqueeze(1)))
    assert sorted(piece.name for piece in pieces) == sorted(used.values())  # type: ignore[union-attr]
    own = {"weight": weight, "bias": bias}
    for i in range(4):
        each = torch.zeros_like(gradient)
        each[i] = gradient[i]
        for piece in pieces:
            assert isinstance(piece, Rows)
            (true,) = torch.autograd.grad(out, own[piece.name], each, retain_graph=True)
            torch.testing.assert_close(piece.tile[i, :, 0], true, rtol=1e-4, atol=1e-5)

"""Each layer type against plain autograd, over shapes and options."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from features.engines import check, engine, error, integers, normal, plain
from features.models import seeded
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

several = settings(deadline=None, max_examples=20)
sizes = st.integers(1, 5)
batches = st.integers(1, 4)
middle = st.lists(st.integers(1, 4), max_size=2)


@several
@given(batches, middle, sizes, sizes, st.booleans())
def test_linear(batch: int, dims: list[int], inputs: int, outputs: int, bias: bool) -> None:
    model = seeded(lambda: nn.Linear(inputs, outputs, bias=bias))
    check(model, normal(batch, *dims, inputs))


@several
@given(
    st.data(), st.sampled_from([1, 2, 3]), batches, st.sampled_from([1, 2, 4, 16]), st.booleans()
)
def test_convolution(data: Any, dims: int, batch: int, groups: int, bias: bool) -> None:
    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(data.draw(st.integers(low, high)) for _ in range(dims))

    kernel, stride, padding, dilation = each(1, 3), each(1, 2), each(0, 2), each(1, 2)
    size = each(1, 7 if dims < 3 else 5)
    windows = [
        n + 2 * p - d * (k - 1) for n, p, d, k in zip(size, padding, dilation, kernel, strict=True)
    ]
    assume(min(windows) > 0)
    make = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
    model = seeded(
        lambda: make(groups, 2 * groups, kernel, stride, padding, dilation, groups, bias)
    )
    check(model, normal(batch, groups, *size))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("padding", ["same", "valid", 1])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular", "replicate"])
def test_convolution_with_all_ways_to_pad(padding: str | int, mode: str) -> None:
    model = seeded(lambda: nn.Conv2d(2, 3, (2, 3), padding=padding, padding_mode=mode))
    check(model, normal(3, 2, 6, 7))


def test_convolution_with_many_positions() -> None:
    check(seeded(lambda: nn.Conv2d(2, 3, 3, padding=1)), normal(3, 2, 12, 12))


@several
@given(batches, st.lists(sizes, max_size=2), st.sampled_from([None, 0, 2, -1]))
def test_embedding(batch: int, dims: list[int], padding: int | None) -> None:
    model = seeded(lambda: nn.Embedding(5, 3, padding_idx=padding))
    with torch.no_grad():
        model.weight.add_(0.1)
    check(model, integers(5, batch, *dims))


@several
@given(batches, middle, sizes, st.booleans(), st.booleans())
def test_layer_norm(batch: int, dims: list[int], size: int, two: bool, bias: bool) -> None:
    shape = (2, size + 1) if two else (size + 1,)
    model = seeded(lambda: nn.LayerNorm(shape, bias=bias))
    check(model, normal(batch, *dims, *shape))


@several
@given(batches, middle, sizes)
def test_rms_norm(batch: int, dims: list[int], size: int) -> None:
    check(nn.RMSNorm(size + 1), normal(batch, *dims, size + 1))


@several
@given(batches, st.lists(st.integers(2, 4), max_size=3), st.sampled_from([1, 2, 4]))
def test_group_norm(batch: int, dims: list[int], groups: int) -> None:
    check(nn.GroupNorm(groups, 8), normal(batch, 8, *dims))


@pytest.mark.parametrize("dims", [0, 1, 2, 3])
def test_batch_norm_in_eval_mode(dims: int) -> None:
    model = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dims](3)
    model(normal(7, 3, *[2, 3, 4][:dims]))  # running statistics
    check(model, normal(4, 3, *[2, 3, 4][:dims], seed=1))


class Conv1D(nn.Module):
    """As in Hugging Face's GPT-2."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal(4, 6))
        self.bias = nn.Parameter(normal(6))

    def forward(self, x: Tensor) -> Tensor:
        out = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return out.view(*x.shape[:-1], 6)


def test_conv1d_of_hugging_face() -> None:
    check(Conv1D(), normal(3, 5, 4))


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kind", ["self", "other", "two", "sizes", "bias", "mask"])
def test_attention(kind: str, first: bool) -> None:
    """Packed and separate input projections, and the output projection that calls no module."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            sizes = {"kdim": 3, "vdim": 2} if kind == "sizes" else {}
            self.attention = nn.MultiheadAttention(
                8, 2, batch_first=first, add_bias_kv=kind == "bias", **sizes
            )

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            if not first:
                x, y = x.transpose(0, 1), y.transpose(0, 1)
            k, v = {"self": (x, x), "mask": (x, x), "other": (y, y), "bias": (y, y)}.get(
                kind, (y, x[..., :])
            )
            if kind == "sizes":
                k, v = y[..., :3], y[..., :2]
            if kind == "two":
                v = y + 1
            mask = torch.ones(5, 5).triu(1).bool() if kind == "mask" else None
            out = self.attention(x, k, v, need_weights=False, attn_mask=mask)[0]
            return out if first else out.transpose(0, 1)

    unknown = ("attention.bias_k", "attention.bias_v") if kind == "bias" else ()
    check(seeded(Attention), normal(3, 5, 8), normal(3, 4, 8, seed=1), generic=unknown)


@pytest.mark.parametrize("kind", ["weight", "turned", "matmul", "rows"])
def test_weights_that_functions_are_given(kind: str) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(normal(6, 4))
            self.b = nn.Parameter(normal(6))

        def forward(self, x: Tensor) -> Tensor:
            if kind == "weight":
                return F.linear(x, self.w, self.b)
            if kind == "turned":
                return x @ self.w.t() + self.b
            if kind == "matmul":
                return (x[..., :1] + self.b) @ self.w
            return F.linear(x, self.w[2:], self.b[2:])

    check(Own(), normal(3, 5, 4))


@pytest.mark.parametrize(
    "shape", [(), (4,), (1, 4), (5, 4), (1, 5, 4), (1, 1, 4), (5, 1), (1, 5, 1)], ids=str
)
@pytest.mark.parametrize("kind", ["add", "multiply", "slice", "turned", "in place"])
def test_parameters_that_are_added_and_multiplied(shape: tuple[int, ...], kind: str) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.p = nn.Parameter(normal(*shape) if shape else torch.tensor(0.7))

        def forward(self, x: Tensor) -> Tensor:
            p = self.p
            if kind == "slice" and shape[-2:-1] == (5,):
                return x[:, 1:4] * p[..., 1:4, :]
            if kind == "turned":
                return p + x if shape else p * x
            if kind == "in place":
                x = x * p
                x += 1
                return x
            return x + p if kind == "add" else x * p

    check(Own(), normal(3, 5, 4))


def test_a_class_token_and_position_embeddings() -> None:
    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(normal(1, 1, 4))
            self.position = nn.Parameter(normal(1, 9, 4, seed=1))

        def forward(self, x: Tensor) -> Tensor:
            x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1)
            return x + self.position[:, : x.shape[1]]

    check(Patches(), normal(3, 5, 4))


@several
@given(batches, sizes, sizes, st.integers(1, 3), st.integers(1, 3), st.booleans(), st.booleans())
def test_attention_of_any_size(
    batch: int, length: int, source: int, heads: int, width: int, bias: bool, own: bool
) -> None:
    """One key for several queries gives all of them one output, so that nobody sees which sample's
    they are: what follows goes through the generic engine."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.MultiheadAttention(heads * width, heads, bias=bias, batch_first=True)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            other = x if own else y
            return self.inner(x, other, other, need_weights=False)[0]

    width_all = heads * width
    inputs = normal(batch, length, width_all), normal(batch, source, width_all, seed=1)
    made = engine(seeded(Attention))
    found = made.rows(inputs).features
    assert error(found, plain(seeded(Attention), inputs)) < 1e-5
    one_key = source == 1 < length and not own
    following = {"inner.out_proj.weight", "inner.out_proj.bias"} if one_key else set()
    assert set(made.generic_parameters) <= following


@several
@given(st.data(), batches, st.lists(sizes, min_size=1, max_size=3), st.booleans())
def test_parameters_of_any_shape_that_is_broadcast(
    data: Any, batch: int, dims: list[int], multiply: bool
) -> None:
    """A parameter has some of the last dimensions of a sample, each whole or 1."""
    kept = data.draw(st.integers(0, len(dims)))
    tail = dims[len(dims) - kept :]
    shape = [data.draw(st.sampled_from(sorted({1, size}))) for size in tail]

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.p = nn.Parameter(normal(*shape) if shape else torch.tensor(0.7))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.p if multiply else x + self.p

    check(Own(), normal(batch, *dims))


def test_layer_norm_far_from_zero() -> None:
    """The sums over positions are not those of squares, which would cancel."""
    model, far = seeded(lambda: nn.LayerNorm(6)), normal(3, 4, 6) + 300
    check(model, 1e-3 * normal(3, 4, 6))
    got = engine(model).rows((far,)).features
    exact = plain(model.double(), (far.double(),))
    assert error(got, exact) < 1e-3  # float32 holds these inputs to 3e-5; squares would give 0.1

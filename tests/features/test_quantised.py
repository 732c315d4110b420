"""Adapters over frozen weights of few bits; the libraries' own layers do not run without a card."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from features.engines import engine, error, normal, plain
from features.models import seeded
from torch import Tensor, nn

import trakstore as ts
from trakstore.errors import TrakStoreError
from trakstore.features import FunctionOutput, featurize


def eight_bits(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of a weight as integers, and their scales."""
    scale = weight.abs().amax(1, keepdim=True) / 127
    return (weight / scale).round().to(torch.int8), scale


class Buffers(nn.Module):
    """Integers as a buffer, and made numbers again by each call."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        integers, scale = eight_bits(weight)
        self.register_buffer("integers", integers)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.integers.float() * self.scale)


class Parameters(nn.Module):
    """Integers as a parameter that requires no gradients, as bitsandbytes has it."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        integers, self.scale = eight_bits(weight)
        self.weight = nn.Parameter(integers, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight.to(x.dtype) * self.scale).t()


class Product(torch.autograd.Function):
    """A product out of sight, with a backward pass of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, integers: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(integers, scale)
        flat = x.flatten(0, -2)
        out: Tensor = torch.ops.aten.mm(flat, torch.ops.aten.mul(integers, scale).T)
        return out.reshape(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        integers, scale = ctx.saved_tensors
        return gradient @ (integers.float() * scale), None, None


class Linear4bit(Parameters):
    """Stands for the layer of bitsandbytes of this name."""

    __module__ = "bitsandbytes.nn.modules"

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = Product.apply(x, self.weight, self.scale)
        return out.to(x.dtype)


class State:
    threshold = 6.0


class Linear8bitLt(Linear4bit):
    """Stands for the layer of bitsandbytes, whose outliers are those of the whole batch."""

    __module__ = "bitsandbytes.nn.modules"

    def __init__(self, weight: Tensor, threshold: float = 6.0) -> None:
        super().__init__(weight)
        self.state = State()
        self.state.threshold = threshold


class Integers(Tensor):
    """A tensor that knows its products itself, as those of torchao do."""

    scale: Tensor

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if func is F.linear:
                own = args[1]
                return F.linear(args[0], own.as_subclass(Tensor).float() * own.scale, *args[2:])
            out = func(*args, **(kwargs or {}))
        if func is Tensor.detach:  # a parameter asks for the same kind
            out = out.as_subclass(Integers)
            out.scale = args[0].scale
        return out


class Subclass(nn.Module):
    """A weight of a class of its own."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        integers, scale = eight_bits(weight)
        own = integers.as_subclass(Integers)
        own.scale = scale
        self.weight = nn.Parameter(own, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class Exact(nn.Module):
    """What all of them should give: the same numbers as an ordinary weight."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        integers, scale = eight_bits(weight)
        self.weight = nn.Parameter(integers.float() * scale, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class Adapted(nn.Module):
    """A frozen layer with a low-rank adapter, scaled by a magnitude as in DoRA."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.a, self.b = nn.Linear(6, 2, bias=False), nn.Linear(2, 6, bias=False)
        self.magnitude = nn.Parameter(1 + 0.1 * normal(6, seed=5))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = (self.magnitude / 2).view(1, -1) * (self.base(x) + self.b(self.a(x)))
        return out


def adapted(kind: Callable[[Tensor], nn.Module]) -> nn.Module:
    def make() -> nn.Module:
        layers = [Adapted(kind(normal(6, 6, seed=i))) for i in range(3)]
        return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])

    return seeded(make)


def unbiased(weight: Tensor) -> nn.Module:
    return Linear8bitLt(weight, threshold=0.0)


@pytest.mark.parametrize("kind", [Buffers, Parameters, Linear4bit, unbiased, Subclass])
@pytest.mark.parametrize("batch", [1, 4])
def test_features_are_those_of_the_weights_made_numbers_again(
    kind: Callable[[Tensor], nn.Module], batch: int, caplog: pytest.LogCaptureFixture
) -> None:
    model, x = adapted(kind), (normal(batch, 5, 6),)
    own = engine(model)
    with caplog.at_level(logging.WARNING, logger="trakstore"):
        features = own.rows(x).features
    assert error(features, plain(adapted(Exact), x)) < 1e-5
    assert not own.generic_parameters and not caplog.records


def test_outliers_of_a_whole_batch_are_left_to_the_generic_engine() -> None:
    model, x = adapted(Linear8bitLt), (normal(4, 5, 6),)
    own = engine(model)
    assert error(own.rows(x).features, plain(adapted(Exact), x)) < 1e-5
    assert any(name.startswith("2.") for name in own.generic_parameters)


class Wrapped(Tensor):
    """Floats of 8 bits with their scale, in a tensor that has no numbers itself, as torchao's."""

    small: Tensor
    scale: Tensor

    @staticmethod
    def __new__(cls, small: Tensor, scale: Tensor) -> Wrapped:
        return Tensor._make_wrapper_subclass(cls, small.shape, dtype=torch.float32)  # type: ignore[return-value]

    def __init__(self, small: Tensor, scale: Tensor) -> None:
        self.small, self.scale = small, scale

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["small", "scale"], None

    @staticmethod
    def __tensor_unflatten__(inner: Any, meta: Any, size: Any, stride: Any) -> Wrapped:
        return Wrapped(**inner)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear:
            return F.linear(args[0], args[1].small.float() * args[1].scale, *args[2:])
        return super().__torch_function__(func, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        own, aten = args[0], torch.ops.aten
        if func in (aten.detach.default, aten.alias.default):
            return Wrapped(own.small, own.scale)
        if func in (aten.clone.default, aten._to_copy.default):
            return Wrapped(own.small.clone(), own.scale.clone())
        if func is aten.copy_.default:
            own.small.copy_(args[1].small)
            own.scale.copy_(args[1].scale)
            return own
        raise NotImplementedError(f"{func} of {types} with {sorted(kwargs or {})}")


class Float8(nn.Module):
    """A frozen weight of floats of 8 bits."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        scale = weight.abs().amax(1, keepdim=True) / 448
        own = Wrapped((weight / scale).to(torch.float8_e4m3fn), scale)
        self.weight = nn.Parameter(own, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class Widened(nn.Module):
    """What it should give: the same numbers as an ordinary weight."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        own = Float8(weight).weight
        self.weight = nn.Parameter(own.small.float() * own.scale, requires_grad=False)  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


def test_whole_runs_of_weights_that_hold_several_tensors(tmp_path: Path) -> None:
    def output(model: Any, batch: Any) -> Tensor:
        values: Tensor = model(batch[0]).sum((1, 2))
        return values

    data = [(normal(5, 6, seed=i),) for i in range(9)]
    options: dict[str, Any] = {"output": FunctionOutput(output, name="sum"), "progress": False}
    options["projector"] = ts.ProjectionSpec("identity")
    for kind in (Float8, Widened):
        featurize(adapted(kind), data, tmp_path / kind.__name__, **options)
    own, wide = (ts.open_store(tmp_path / kind.__name__) for kind in (Float8, Widened))
    torch.testing.assert_close(*(torch.tensor(s.features(0, "train").values) for s in (own, wide)))
    model: Any = adapted(Float8)
    featurize(model, data, tmp_path / "Float8", split="again", **options)
    model[0].base.weight.small[0, 0] = 1.0
    featurize(model, data, tmp_path / "Float8", split="other", **options)
    hashes = [own.split(0, name).spec.checkpoint for name in ("train", "again", "other")]
    assert hashes[0] == hashes[1] != hashes[2]


class Writes(Float8):
    """A forward that changes its weight."""

    def forward(self, x: Tensor) -> Tensor:
        own: Any = self.weight
        own.small.view(torch.uint8).add_(1)
        return super().forward(x)


def test_changes_of_such_weights_are_seen(tmp_path: Path) -> None:
    output = FunctionOutput(lambda model, batch: model(batch[0]).sum((1, 2)), name="sum")
    data = [(normal(5, 6, seed=i),) for i in range(9)]
    with pytest.raises(TrakStoreError, match=r"changed the parameter"):
        featurize(adapted(Writes), data, tmp_path / "s", output=output, progress=False)


class Inference(Parameters):
    """A kernel without a backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.detach())


class Ends(nn.Module):
    """An adapter before a layer whose kernel cannot train, and one behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.base = nn.Linear(6, 6), Inference(normal(6, 6))
        self.last = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.base(self.first(x)))
        return out


def test_layers_that_cannot_train_are_named_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    own = engine(seeded(Ends))
    with caplog.at_level(logging.WARNING, logger="trakstore"):
        own.rows((normal(3, 6),))
    (line,) = [one.message for one in caplog.records if "no gradients" in one.message]
    assert line.startswith("1 layers (Inference) give no gradients to what is before them")
    assert line.endswith("kernels that can train; they are base")

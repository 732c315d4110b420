"""What benchmarks run: models with their outputs and data, and how times are compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import trakstore as ts
from trakstore.features import ModelOutput, RowOutputs
from trakstore.features.factorised import FactorisedEngine
from trakstore.features.outputs import as_output
from trakstore.features.parameters import parameter_spec, select_parameters
from trakstore.features.projectors import make_projector

Batch = tuple[Tensor, Tensor]


def block(inputs: int, outputs: int, pool: bool = False) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    last = [nn.MaxPool2d(2)] if pool else []
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True), *last)


class ResNet9(nn.Module):
    """6.57 million parameters on 3 x 32 x 32."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        w = width
        self.a, self.b = block(3, w), block(w, 2 * w, pool=True)
        self.same1 = nn.Sequential(block(2 * w, 2 * w), block(2 * w, 2 * w))
        self.c, self.d = block(2 * w, 4 * w, pool=True), block(4 * w, 8 * w, pool=True)
        self.same2 = nn.Sequential(block(8 * w, 8 * w), block(8 * w, 8 * w))
        self.head = nn.Linear(8 * w, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.b(self.a(x))
        h = self.d(self.c(h + self.same1(h)))
        logits: Tensor = self.head((h + self.same2(h)).amax((2, 3)))
        return logits


class Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        first = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        norms = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.long = nn.Sequential(first, norms[0], nn.ReLU(), second, norms[1])
        short = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        same = stride == 1 and inputs == outputs
        self.short = nn.Identity() if same else nn.Sequential(short, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.long(x) + self.short(x))


def resnet18(width: int = 64) -> nn.Module:
    """11.2 million parameters on 3 x 32 x 32, with the stem for small images."""
    sizes = [width * 2**i for i in range(4)]
    layers: list[nn.Module] = [block(3, width)]
    for inputs, outputs in zip([width, *sizes], sizes, strict=False):
        layers += [
            Residual(inputs, outputs, 1 if outputs == width else 2),
            Residual(outputs, outputs, 1),
        ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(sizes[-1], 10))


class Transformer(nn.Module):
    """A causal language model: by default 4 layers of width 256, vocabulary 2,048."""

    def __init__(
        self, width: int = 256, layers: int = 4, vocabulary: int = 2048, heads: int = 4
    ) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(vocabulary, width), nn.Embedding(1024, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        length = ids.shape[1]
        h = self.token(ids) + self.position(torch.arange(length, device=ids.device))
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=ids.device)
        logits: Tensor = self.head(self.norm(self.layers(h, mask=mask, is_causal=True)))
        return logits


class NextToken(ModelOutput):
    """Mean cross-entropy of a sequence."""

    name = "next_token"

    def __call__(self, model: Callable[..., Any], batch: Batch) -> RowOutputs:
        ids, targets = batch
        logits = model(ids).flatten(0, 1)  # the loss of images' pixels has no deterministic kernel
        losses = F.cross_entropy(logits, targets.flatten(), reduction="none")
        loss = losses.reshape(targets.shape).mean(1)
        return RowOutputs(loss, loss, -torch.ones_like(loss))


def mlp(width: int = 256) -> nn.Module:
    layers = [nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


class Work:
    """A model, its output and its data."""

    def __init__(self, name: str, small: bool = False, device: str = "cpu", **sizes: int) -> None:
        torch.manual_seed(0)
        self.device = torch.device(device)
        self.name, self.output = name, as_output("margin")
        self.length = sizes.pop("length", 8 if small else 64)
        if name == "resnet9":
            self.model: nn.Module = ResNet9(**(sizes or {"width": 2 if small else 64}))
        elif name == "resnet18":
            self.model = resnet18(**(sizes or {"width": 2 if small else 64}))
        elif name == "mlp":
            self.model = mlp(**(sizes or {"width": 16 if small else 256}))
        else:
            reduced = {"width": 16, "layers": 1, "vocabulary": 64} if small else {}
            self.model, self.output = Transformer(**(sizes or reduced)), NextToken()
        self.model.to(self.device).eval()

    @property
    def count(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    def batch(self, size: int, seed: int = 1) -> Batch:
        inputs, labels = self._batch(size, seed)
        return inputs.to(self.device), labels.to(self.device)

    def _batch(self, size: int, seed: int) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(0, 10, (size,), generator=generator)
        if self.name.startswith("resnet"):
            return torch.randn(size, 3, 32, 32, generator=generator), labels
        if self.name == "mlp":
            return torch.randn(size, 64, generator=generator), labels
        vocabulary = self.model.head.out_features  # type: ignore[union-attr]
        ids = torch.randint(0, vocabulary, (size, self.length + 1), generator=generator)
        return ids[:, :-1].clone(), ids[:, 1:].clone()

    def engine(self, spec: ts.ProjectionSpec, patterns: Sequence[str] = ("*",)) -> FactorisedEngine:
        selected = select_parameters(self.model, patterns)
        projector = make_projector(spec, parameter_spec(selected, patterns))
        return FactorisedEngine(self.model, self.output, selected, projector)

    def floor(self, size: int = 32) -> Callable[[], None]:
        batch, parameters = self.batch(size), list(self.model.parameters())

        def run() -> None:
            torch.autograd.grad(self.output(self.model, batch).loss.mean(), parameters)

        return run


def compared(work: dict[str, tuple[Callable[[], Any], int]], rounds: int) -> dict[str, float]:
    """Median seconds a sample; each runs once before, then all alternate."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    repeats = {}
    for name, (run, _) in work.items():
        run()
        began = time.perf_counter()
        run()
        repeats[name] = max(1, int(0.05 / (time.perf_counter() - began)))
    for _ in range(rounds):
        for name, (run, size) in work.items():
            began = time.perf_counter()
            for _ in range(repeats[name]):
                run()
            seconds[name].append((time.perf_counter() - began) / repeats[name] / size)
    return {name: statistics.median(values) for name, values in seconds.items()}


def rows_of(
    work: Work, spec: ts.ProjectionSpec, size: int, drop: bool = False
) -> tuple[Callable[[], Any], int]:
    """Features of a batch, checked before; or, to ``drop`` them, gradients that nobody projects."""
    engine, batch = work.engine(spec), work.batch(size)
    if drop:
        engine.rows(batch)
        nothing = {"add": lambda *_: None, "add_gathered": lambda *_: None}
        vars(engine.projector).update(nothing)
    return lambda: engine.rows(batch), size

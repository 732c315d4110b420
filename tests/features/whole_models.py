"""Whole models with what an engine may trip over: name, maker, inputs, and what no layer type knows."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from features.engines import integers, normal
from features.models import ConvNet, Recurrent, mlp
from models import ResNet9
from torch import Tensor, nn


class ResNet(nn.Module):
    """Blocks as in ResNet-9, with in-place activations and sums."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self._block(3, 8)
        self.same = nn.Sequential(self._block(8, 8), self._block(8, 8))
        self.head = nn.Linear(8, 5)

    @staticmethod
    def _block(inputs: int, outputs: int) -> nn.Module:
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        h = F.max_pool2d(self.first(x), 2)
        h = self.same(h) + h
        out: Tensor = self.head(h.amax((2, 3)))
        return out


class Language(nn.Module):
    """Tied weights, positions without a batch dimension, attention, changes in place."""

    def __init__(self, first: bool = True, norm_first: bool = False) -> None:
        super().__init__()
        self.batch_first = first
        self.token, self.position = nn.Embedding(11, 8), nn.Embedding(9, 8)
        layer = nn.TransformerEncoderLayer(
            8, 2, 16, dropout=0.0, batch_first=first, norm_first=norm_first
        )
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.token.weight

    def forward(self, ids: Tensor) -> Tensor:
        h = self.token(ids)
        h += self.position(torch.arange(ids.shape[1]))
        h = self.layers(h if self.batch_first else h.transpose(0, 1))
        out: Tensor = self.head(h if self.batch_first else h.transpose(0, 1))
        return out


class Twice(nn.Module):
    """A layer that is called three times, on other shapes, once without a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            shift = self.layer(x)
        out: Tensor = self.layer(torch.tanh(self.layer(x))).sum(1, keepdim=True) + shift
        return self.layer(out[:, 0])


class Vision(nn.Module):
    """As ViT: patches, a class token, positions as a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, stride=4)
        self.token = nn.Parameter(normal(1, 1, 8))
        self.position = nn.Parameter(normal(1, 5, 8))
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patch(x).flatten(2).transpose(1, 2)
        h = torch.cat([self.token.expand(len(x), -1, -1), patches], dim=1) + self.position
        out: Tensor = self.head(self.block(h)[:, 0])
        return out


class Changed(nn.Module):
    """Outputs of layers that are changed in place, as ``h += residual``."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(4, 4), nn.Linear(4, 4), nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        h += x
        h[..., 0] = h[..., 1] * 2
        h = self.norm(h)
        h.mul_(2).add_(1)
        out: Tensor = self.b(h).relu_()
        return out


class Memory(nn.Module):
    """An LSTM over 12 values as 4 steps of 3."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.lstm(x.reshape(-1, 4, 3))[0][:, -1])
        return out


class Attention(nn.Module):
    """``nn.MultiheadAttention`` alone, whose output projection calls no module."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.attention(x, x, x)[0]
        return out


def frozen() -> nn.Module:
    """A language model whose first layer and positions are frozen."""
    model = Language()
    model.layers.layers[0].requires_grad_(False)
    model.position.requires_grad_(False)
    return model


class Logits(nn.Module):
    """A model of Hugging Face that gives its logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x).logits
        return logits


def hugging_face(kind: str) -> nn.Module:
    """A small model from a configuration, nothing downloaded."""
    import transformers

    small = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    small |= {"intermediate_size": 16}
    if kind == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=13, n_positions=9, n_embd=8, n_layer=2, n_head=2
        )
        return Logits(transformers.GPT2LMHeadModel(config))
    if kind == "bert":
        config = transformers.BertConfig(vocab_size=13, **small)
        return Logits(transformers.BertForSequenceClassification(config))
    if kind == "llama":
        config = transformers.LlamaConfig(vocab_size=13, **small)
        return Logits(transformers.LlamaForCausalLM(config))
    config = transformers.ViTConfig(image_size=8, patch_size=4, **small)
    return Logits(transformers.ViTForImageClassification(config))


def recurrent(name: str) -> tuple[str, ...]:
    return tuple(f"{name}.{one}_l0" for one in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))


Model = tuple[Callable[[], nn.Module], tuple[Tensor, ...], tuple[str, ...]]

MODELS: dict[str, Model] = {
    "resnet": (ResNet, (normal(4, 3, 8, 8),), ()),
    "resnet-9": (lambda: ResNet9(width=2), (normal(3, 3, 16, 16),), ()),
    "language, tied": (Language, (integers(11, 4, 6),), ()),
    "language, time first": (lambda: Language(False, True), (integers(11, 6, 6),), ()),
    "language, partly frozen": (frozen, (integers(11, 3, 6),), ()),
    "vision": (Vision, (normal(3, 3, 8, 8),), ()),
    "attention": (Attention, (normal(3, 4, 8),), ()),
    "a layer twice": (Twice, (normal(4, 3, 4),), ()),
    "changed in place": (Changed, (normal(4, 3, 4),), ()),
    "batch norm": (ConvNet, (normal(5, 12),), ()),
    "mlp": (mlp, (normal(5, 12),), ()),
    "gru": (Recurrent, (normal(4, 12),), recurrent("gru")),
    "lstm": (Memory, (normal(4, 12),), recurrent("lstm")),
}
HUGGING_FACE: dict[str, Model] = {
    kind: (
        lambda kind=kind: hugging_face(kind),  # type: ignore[misc]
        (normal(3, 3, 8, 8) if kind == "vit" else integers(13, 3, 6),),
        (),
    )
    for kind in ("gpt2", "bert", "llama", "vit")
}

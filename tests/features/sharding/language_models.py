"""Small language models, as larger ones are built: one like Llama, one like GPT-2 with tied weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Llama(nn.Module):
    """Norms of the mean square, gated layers, no biases, a head of its own."""

    def __init__(self, words: int = 40, width: int = 16, layers: int = 3, heads: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.layers = nn.ModuleList(LlamaBlock(width, heads) for _ in range(layers))
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.head = nn.Linear(width, words, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embedding(input_ids)
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


class LlamaBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(width, eps=1e-5)
        self.attention = Attention(width, heads, bias=False)
        self.mlp_norm = nn.RMSNorm(width, eps=1e-5)
        self.gate, self.up = (nn.Linear(width, 2 * width, bias=False) for _ in range(2))
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        own = self.mlp_norm(x)
        gated: Tensor = x + self.down(F.silu(self.gate(own)) * self.up(own))
        return gated


class Gpt(nn.Module):
    """Layer norms, biases, learned positions, the embedding as the head."""

    def __init__(self, words: int = 40, width: int = 16, layers: int = 3, heads: int = 4) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(words, width), nn.Embedding(32, width)
        self.blocks = nn.ModuleList(GptBlock(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.words.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.words(input_ids) + self.positions(places)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


class GptBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, bias=True)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        added: Tensor = x + self.down(F.gelu(self.up(self.mlp_norm(x))))
        return added


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, *, bias: bool) -> None:
        super().__init__()
        self.each = width // heads
        self.query, self.key, self.value = (nn.Linear(width, width, bias) for _ in range(3))
        self.out = nn.Linear(width, width, bias)

    def forward(self, x: Tensor) -> Tensor:
        # As many heads as there are columns: under tensor parallel a rank has some of them.
        query, key, value = (
            one(x).unflatten(-1, (-1, self.each)).transpose(1, 2)
            for one in (self.query, self.key, self.value)
        )
        heads = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        mixed: Tensor = self.out(heads.transpose(1, 2).flatten(2))
        return mixed


class Texts:
    """Samples of so many words, of a few lengths once they are padded."""

    def __init__(self, count: int, words: int = 40, length: int = 12, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.ids = torch.randint(0, words, (count, length), generator=generator)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


def made(kind: type[nn.Module], **sizes: int) -> nn.Module:
    torch.manual_seed(0)
    model = kind(**sizes)
    with torch.no_grad():
        for parameter in model.parameters():  # norms' scales are not all the same
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model

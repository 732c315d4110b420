"""Texts of two lengths, collators that pad them, and models whose positions are absolute."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

WORDS, LONG, SHORT, ROWS = 23, 12, 7, 96


class Texts(list[Any]):
    """Rows of tokens of one length, but of some that are shorter, with a label."""

    def __init__(self, short: Iterable[int] = range(17, ROWS, 40), rows: int = ROWS) -> None:
        generator = torch.Generator().manual_seed(0)
        self.short = [*short]
        sizes = [SHORT if row in self.short else LONG for row in range(rows)]
        made = [torch.randint(1, WORDS, (size,), generator=generator) for size in sizes]
        super().__init__({"input_ids": one, "label": i % 3} for i, one in enumerate(made))


class Pad:
    """Collator that pads to the longest, at the left or at the right; it may give places as well."""

    def __init__(self, side: str, *, places: bool = False, labels: bool = False) -> None:
        self.side, self.places, self.labels = side, places, labels

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        most = max(len(one["input_ids"]) for one in samples)
        ids = torch.stack([self._padded(one["input_ids"], most) for one in samples])
        mask = (ids > 0).long()
        made = {"input_ids": ids, "attention_mask": mask}
        if self.places:
            made["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        if self.labels:
            made["labels"] = torch.tensor([one["label"] for one in samples])
        return made

    def _padded(self, ids: Tensor, most: int) -> Tensor:
        missing = most - len(ids)
        return pad(ids, (missing, 0) if self.side == "left" else (0, missing))


class Placed(nn.Module):
    """A causal model with absolute positions, which are counted from the first column."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.places = nn.Embedding(WORDS, 6), nn.Embedding(LONG, 6)
        self.head = nn.Linear(6, WORDS)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor | None = None
    ) -> Tensor:
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1]).expand_as(input_ids)
        states = (self.embed(input_ids) + self.places(position_ids)) * attention_mask[..., None]
        out: Tensor = self.head(torch.tanh(states.cumsum(1)))
        return out


class Pooled(nn.Module):
    """A classifier of the mean state of a text, whose positions are absolute."""

    def __init__(self, *, spoiled: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.places = nn.Embedding(WORDS, 6), nn.Embedding(LONG, 6)
        self.head, self.spoiled = nn.Linear(6, 3), spoiled

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        places = torch.arange(input_ids.shape[1]).expand_as(input_ids)
        mask = attention_mask[..., None].float()
        states = torch.tanh(self.embed(input_ids) + self.places(places)) * mask
        if self.spoiled:  # 0 / 0 where there is padding
            states = states / mask
        out: Tensor = self.head(states.sum(1) / mask.sum(1))
        return out

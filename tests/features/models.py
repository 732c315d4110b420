"""Small models and data sets for tests; also imported by job files that tests write."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Samples:
    """``n`` random samples of 12 values in 3 classes."""

    def __init__(self, n: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(n, 12, generator=generator)
        self.y = torch.randint(0, 3, (n,), generator=generator)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]


def seeded(make: Any, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: nn.Module = make()
    return model


def mlp(seed: int = 0) -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 3)), seed)


class ConvNet(nn.Module):
    """Convolution, batch norm and dropout on 12 values as 3 x 2 x 2."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4 * 9, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.norm(self.conv(x.reshape(-1, 3, 2, 2))))
        out: Tensor = self.head(self.drop(hidden.flatten(1)))
        return out


class Recurrent(nn.Module):
    """A GRU over 12 values as 4 steps of 3."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 5, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.gru(x.reshape(-1, 4, 3))[0][:, -1])
        return out

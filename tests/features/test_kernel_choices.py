"""Memory formats and kernels that a model may choose: features do not depend on them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from features.engines import engine, error, normal, plain
from features.models import seeded
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


class Images(nn.Module):
    """Convolutions of several kinds, with norms of channels between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 8, 3, padding=1, bias=False)
        self.grouped = nn.Conv2d(8, 8, 3, stride=2, groups=2)
        self.norm, self.group = nn.BatchNorm2d(8), nn.GroupNorm(2, 8)
        self.apart, self.one = nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm(self.grouped(self.first(x))))
        out: Tensor = self.one(self.group(self.apart(h))).mean((2, 3))
        return out


@pytest.mark.parametrize("given", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("held", [torch.contiguous_format, torch.channels_last])
def test_channels_may_be_last(given: Any, held: Any) -> None:
    model, x = seeded(Images), normal(4, 4, 9, 9)
    own = engine(model.to(memory_format=held))
    features = own.rows((x.to(memory_format=given),)).features
    assert error(features, plain(seeded(Images), (x,))) < 1e-5
    assert not own.generic_parameters


class Attends(nn.Module):
    """Causal attention by torch's own function."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).view(*x.shape[:2], 3, 2, 8).permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(*parts, is_causal=True).transpose(1, 2)
        out: Tensor = self.out(h.flatten(2))
        return out


class Chooses(Attends):
    """The same, with a kernel that the model chooses itself."""

    def __init__(self, backend: SDPBackend) -> None:
        super().__init__()
        self.backend = backend

    def forward(self, x: Tensor) -> Tensor:
        with sdpa_kernel(self.backend):
            return super().forward(x)


@pytest.mark.parametrize("backend", [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH])
def test_kernels_of_attention_may_be_chosen(backend: SDPBackend) -> None:
    x = (normal(4, 7, 16),)
    own = engine(seeded(lambda: Chooses(backend)))
    assert error(own.rows(x).features, plain(seeded(Attends), x)) < 1e-5
    assert not own.generic_parameters

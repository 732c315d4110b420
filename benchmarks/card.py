"""A device, timed with its queue drained, and what it can do at most."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Card:
    """A device, and whether only to see that the script runs."""

    device: torch.device
    small: bool

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, run: Callable[[], Any], rounds: int = 5, warm: int = 2) -> float:
        """Median of a few runs."""
        for _ in range(warm):
            run()
        taken = []
        for _ in range(1 if self.small else rounds):
            self.wait()
            began = time.perf_counter()
            run()
            self.wait()
            taken.append(time.perf_counter() - began)
        return statistics.median(taken)

    def copied(self) -> float:
        """Bytes a second of a copy, read and written."""
        a = torch.empty(1 << (20 if self.small else 30), dtype=torch.uint8, device=self.device)
        b = torch.empty_like(a)
        return 2 * a.numel() / self.seconds(lambda: b.copy_(a), rounds=10)

    def multiplied(self) -> float:
        """Operations a second of a bfloat16 matmul."""
        n = 64 if self.small else 8192
        a, b = torch.randn(2, n, n, device=self.device).to(torch.bfloat16)
        return 2 * n**3 / self.seconds(lambda: a @ b, rounds=10)

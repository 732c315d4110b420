"""A device, timed with its queue drained, what it can do at most, and the figures it gave."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import torch

T = TypeVar("T")


@dataclass
class Card:
    """A device, whether only to see that the script runs, and the time until which it may.

    Each figure that is printed is kept with its numbers in ``figures``.
    """

    device: torch.device
    small: bool
    until: float = float("inf")
    part: str = ""
    figures: list[dict[str, Any]] = field(default_factory=list)

    def tell(self, text: str, **numbers: Any) -> None:
        """Print a figure, and keep it."""
        print(f"  {text}", flush=True)
        self.figures.append({"part": self.part, "text": text, **numbers})

    def in_time(self, cases: Iterable[T]) -> Iterator[T]:
        """Yield cases while there is time; those that are passed over are counted in a line."""
        waiting = list(cases)
        while waiting and time.monotonic() < self.until:
            yield waiting.pop(0)
        if waiting:
            self.tell(f"out of time: {len(waiting)} cases were passed over", passed=len(waiting))

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, run: Callable[[], Any], rounds: int = 5, warm: int = 2) -> float:
        """Median of a few runs."""
        for _ in range(1 if self.small else warm):
            run()
        taken = []
        for _ in range(1 if self.small else rounds):
            self.wait()
            began = time.perf_counter()
            run()
            self.wait()
            taken.append(time.perf_counter() - began)
        return statistics.median(taken)

    def peak(self, run: Callable[[], Any]) -> int:
        """Most bytes of tensors that a run had on the card; 0 on the CPU."""
        if self.device.type != "cuda":
            return 0
        torch.cuda.reset_peak_memory_stats(self.device)
        run()
        self.wait()
        return torch.cuda.max_memory_allocated(self.device)

    def launches(self, run: Callable[[], Any]) -> int:
        """Kernels and graphs that a run launches; 0 on the CPU."""
        if self.device.type != "cuda":
            return 0
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            run()
            self.wait()
        return sum(one.count for one in seen.key_averages() if "Launch" in one.key)

    @cached_property
    def copied(self) -> float:
        """Bytes a second of a copy on the card, read and written."""
        a = torch.empty(1 << (20 if self.small else 30), dtype=torch.uint8, device=self.device)
        b = torch.empty_like(a)
        return 2 * a.numel() / self.seconds(lambda: b.copy_(a), rounds=10)

    @cached_property
    def multiplied(self) -> float:
        """Operations a second of a bfloat16 matmul."""
        return self._matmul(torch.bfloat16)

    @cached_property
    def multiplied_exactly(self) -> float:
        """Operations a second of a float32 matmul without TF32."""
        return self._matmul(torch.float32)

    def _matmul(self, dtype: torch.dtype) -> float:
        n = 64 if self.small else 8192
        a, b = torch.randn(2, n, n, device=self.device).to(dtype)
        return 2 * n**3 / self.seconds(lambda: a @ b, rounds=10)

    def ceilings(self) -> None:
        """Tell the two that features are compared with."""
        self.tell(
            f"ceilings: copy {self.copied / 1e12:.3g} TB/s, bfloat16 matmul "
            f"{self.multiplied / 1e12:.3g} TFLOP/s",
            copied=self.copied,
            multiplied=self.multiplied,
        )

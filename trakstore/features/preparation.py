"""Measured time before the first row, by part."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from trakstore.features.seconds import SecondsByPart

__all__ = ["PARTS", "Preparation", "Stopwatch"]

# Words for the parts, in their order.
PARTS = {
    "weights": "hash of the weights",
    "samples": "fingerprint of the samples",
    "passes": "first passes of the model",
    "checks": "check of the engine, and its tables and kernels",
    "memory": "memory of a sample",
    "store": "opening the store",
}


@dataclass(frozen=True)
class Preparation(SecondsByPart):
    """Seconds of preparing splits, by part; they do not overlap.

    Attributes
    ----------
    weights : float
        Hashing the model's weights, and copying small ones.
    samples : float
        Hashing some samples of the data set, each read twice.
    passes : float
        First passes of the model, with all that its libraries load and compile for them.
    checks : float
        Comparing the engine with ordinary backward passes, and making the projection's tables and
        kernels.
    memory : float
        Measuring the memory that samples need, where it is limited.
    store : float
        Opening the store and the split.
    """

    weights: float = 0.0
    samples: float = 0.0
    passes: float = 0.0
    checks: float = 0.0
    memory: float = 0.0
    store: float = 0.0


class Stopwatch:
    """Clock whose laps are parts of the preparation, in their order; a part may have several laps.

    Parameters
    ----------
    say : callable, optional
        Function that is told, in words, which part begins.
    """

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        self.measured = Preparation()
        self._say, self._since = say, time.monotonic()
        self._announce(next(iter(PARTS)))

    def lap(self, part: str) -> None:
        """Count the time since the last lap to a part."""
        now = time.monotonic()
        before = getattr(self.measured, part)
        self.measured = replace(self.measured, **{part: before + now - self._since})
        self._since = now
        names = list(PARTS)
        if part != names[-1]:
            self._announce(names[names.index(part) + 1])

    def leave_out(self) -> None:
        """Count the time since the last lap to no part."""
        self._since = time.monotonic()

    def _announce(self, part: str) -> None:
        if self._say is not None:
            self._say(PARTS[part])

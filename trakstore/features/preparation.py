"""Time before the first row, measured, by part."""

from __future__ import annotations

import time
from dataclasses import astuple, dataclass, replace
from operator import add

__all__ = ["Preparation", "Stopwatch"]


@dataclass(frozen=True)
class Preparation:
    """Seconds of preparing splits, by part; they do not overlap.

    Attributes
    ----------
    weights : float
        Hash of the model's weights, and a copy of small ones.
    samples : float
        Fingerprint of the data set: some samples, each read twice.
    passes : float
        First passes of the model, with what its libraries load and compile for them.
    checks : float
        The engine beside ordinary backward passes, with the projection's tables and kernels.
    memory : float
        Measure of what samples need, where memory is limited.
    store : float
        Opening the store and the split.
    """

    weights: float = 0.0
    samples: float = 0.0
    passes: float = 0.0
    checks: float = 0.0
    memory: float = 0.0
    store: float = 0.0

    @property
    def total(self) -> float:
        """Sum of all parts."""
        return float(sum(astuple(self)))

    def __add__(self, other: Preparation) -> Preparation:
        return Preparation(*map(add, astuple(self), astuple(other)))


class Stopwatch:
    """Clock whose laps are parts of preparing; a part may have several."""

    def __init__(self) -> None:
        self.measured = Preparation()
        self._since = time.monotonic()

    def lap(self, part: str) -> None:
        """Count the time since the last lap to a part."""
        now = time.monotonic()
        before = getattr(self.measured, part)
        self.measured = replace(self.measured, **{part: before + now - self._since})
        self._since = now

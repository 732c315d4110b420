"""Seconds of work by its parts, which add up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from operator import add, sub
from typing import Self

__all__ = ["SecondsByPart"]


@dataclass(frozen=True)
class SecondsByPart:
    """Seconds by part, which are the fields of a subclass; they do not overlap."""

    @property
    def total(self) -> float:
        """Sum of all parts."""
        return float(sum(getattr(self, one.name) for one in fields(self)))

    def __add__(self, other: Self) -> Self:
        return self._each(add, other)

    def __sub__(self, earlier: Self) -> Self:
        return self._each(sub, earlier)

    def _each(self, of: Callable[[float, float], float], other: Self) -> Self:
        names = [one.name for one in fields(self)]
        return replace(
            self, **{name: of(getattr(self, name), getattr(other, name)) for name in names}
        )

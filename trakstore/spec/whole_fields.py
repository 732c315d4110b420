"""Whole numbers in the fields of a frozen dataclass, as Python's own."""

from __future__ import annotations

from typing import Any

from trakstore.quantities import as_whole


def set_whole(
    spec: Any, name: str, least: int | None = None, most: int | None = None, needed: str = ""
) -> None:
    """Convert a field to Python's own integer, or raise; None is left unchanged."""
    value = getattr(spec, name)
    if value is not None:
        # A frozen dataclass allows no ordinary assignment.
        object.__setattr__(spec, name, as_whole(value, name, least, most, needed=needed))

"""Whole numbers in the fields of a frozen dataclass, as Python's own."""

from __future__ import annotations

from typing import Any

from trakstore.quantities import as_whole


def set_whole(
    spec: Any, name: str, least: int | None = None, most: int | None = None, needed: str = ""
) -> None:
    """Make a field Python's own whole number, or raise; None is left as it is."""
    value = getattr(spec, name)
    if value is not None:
        # A frozen dataclass has no other way to change what it was given.
        object.__setattr__(spec, name, as_whole(value, name, least, most, needed=needed))

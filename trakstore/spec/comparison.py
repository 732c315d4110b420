"""Comparison of what a store holds with what a run would write."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

from trakstore.errors import SpecMismatchError

_ORIGINS = {"checkpoint": "checkpoint", "dataset": "data set"}  # fields, in words
_HASH = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")  # its first figures do for people


def check_equal(stored: Any, got: Any, where: str, remedy: str = "give it another store") -> None:
    """Raise a :class:`SpecMismatchError` that shows both values of each field that differs.

    Hashes are shortened, after words that say what differs.

    Examples
    --------
    >>> from trakstore.spec import ProjectionSpec
    >>> check_equal(ProjectionSpec("sjlt", 8), ProjectionSpec("sjlt", 9), "run.zarr")
    Traceback (most recent call last):
    trakstore.errors.SpecMismatchError: run.zarr holds dim 8, this run has 9; give it another store
    """
    if stored == got:
        return
    # Fields that are not compared were chosen by the first writer, and others adopt them.
    names = [f.name for f in fields(stored) if f.compare]
    names = [name for name in names if getattr(stored, name) != getattr(got, name)]
    differences = [
        f"{name} {shortened(getattr(stored, name))}, this run has {shortened(getattr(got, name))}"
        for name in names
    ]
    # A digest of code also changes with Python's version. The remedy is to name the function.
    outputs = "output" in names and stored.output and got.output
    if outputs and stored.output.differs_in_code_alone(got.output):
        remedy += ", or if both functions compute the same, FunctionOutput(function, name=...)"
    raise SpecMismatchError(
        f"{where}{_other_origins(names)} holds {'; '.join(differences)}; {remedy}"
    )


def _other_origins(names: list[str]) -> str:
    """Say which of these fields show that the store was made from something else."""
    others = [f"the {_ORIGINS[name]}" for name in names if name in _ORIGINS]
    differ = "differ from those" if len(others) > 1 else "differs from the one"
    return f": {' and '.join(others)} {differ} that the store was made from; it" if others else ""


def shortened(value: Any) -> str:
    """Return a value as text for a message; hashes and long values are cut."""
    text = _HASH.sub(r"\1", str(value))
    return text if len(text) <= 400 else f"{text[:400]}..."

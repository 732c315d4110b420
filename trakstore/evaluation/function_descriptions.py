"""Descriptions of the functions that a trainer is made of, in plain values."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np

from trakstore.features.outputs.code import is_installed
from trakstore.features.outputs.function_identity import code_digest


def code(function: Any) -> str | None:
    """Return a digest of what people wrote themselves of a function, and of what it computes with.

    None where its name and the plain arguments of a ``partial``, which are told as they are, are all.
    """
    held = [function]
    if isinstance(function, partial):
        arguments = (*function.args, *function.keywords.values())
        held = [function.func, *(one for one in arguments if not _is_plain(one))]
    if function is None or (len(held) == 1 and is_installed(held[0])):
        return None
    # Held by another function, whose own code counts even where it is installed.
    return code_digest(partial(_given, *held)).split()[0]


def _given(*functions: Any) -> Any:
    return functions


def _is_plain(value: Any) -> bool:
    """Tell whether :func:`plain` says all of a value."""
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str | np.generic)


def plain(value: Any) -> Any:
    """Make a value plain: numbers, texts and collections stay, functions and others become a name."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(value)  # JSON has no inf
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, partial):
        given = {"arguments": plain(value.args), **plain(value.keywords)}
        return {"name": plain(value.func), **given}
    return getattr(value, "__qualname__", type(value).__qualname__)

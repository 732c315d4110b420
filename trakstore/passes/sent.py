"""Objects that are sent to a cluster's workers, and give the same numbers there as here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


class Sent:
    """A base for objects that hold arrays of floats and are unpickled by workers.

    A message leaves its arrays at any address. Where that is no multiple of an item's size, numpy
    does not give them to BLAS as they are, and products are rounded otherwise: so arrays move.
    """

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        for name, value in state.items():
            # Subclasses are frozen dataclasses, which refuse an ordinary assignment.
            object.__setattr__(self, name, _aligned(value))


def _aligned(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return np.require(value, requirements="A")
    if type(value) is tuple:
        return tuple(_aligned(one) for one in value)
    return value

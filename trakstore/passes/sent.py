"""Objects that give the same numbers in a cluster's workers as in this process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


class Sent:
    """A base for objects that hold arrays of floats and are unpickled by workers.

    Arrays in a message may begin at any address. If that is no multiple of the item size, numpy does
    not pass them to BLAS directly, and products are rounded differently. So the arrays are copied.
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

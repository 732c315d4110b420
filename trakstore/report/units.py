"""Numbers of one table in one unit, a power of ten, so that a decimal or two is enough for each."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["in_powers_of_ten"]

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def in_powers_of_ten(values: NDArray[Any]) -> tuple[NDArray[np.float64], str]:
    """The numbers, of which the largest is in 1..10 then, and what they must be multiplied by.

    Examples
    --------
    >>> in_powers_of_ten(np.array([0.012, -0.003]))
    (array([ 1.2, -0.3]), '10⁻²')
    """
    numbers = np.asarray(values, dtype=np.float64)
    most = float(np.abs(numbers[np.isfinite(numbers)]).max(initial=0.0))
    power = math.floor(math.log10(most)) if most > 0 else 0
    return numbers / 10.0**power, f"10{str(power).translate(_SUPERSCRIPTS)}" if power else "1"

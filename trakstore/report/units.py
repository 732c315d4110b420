"""Numbers for people: in powers of ten, as intervals, and a few evenly spaced out of many."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEVELS = 4
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def from_to(low: float, high: float, form: str) -> str:
    """Write an interval, or a dash where there is none.

    Examples
    --------
    >>> from_to(-0.25, 1.5, "+.2g"), from_to(math.nan, math.nan, "+.2g")
    ('-0.25 to +1.5', '-')
    """
    return "-" if math.isnan(low) else f"{low:{form}} to {high:{form}}"


def evenly_spaced(count: int, most: int) -> NDArray[np.int64]:
    """Choose positions of at most ``most`` of ``count`` things, first and last among them.

    Examples
    --------
    >>> evenly_spaced(101, 3)
    array([  0,  50, 100])
    """
    places = np.linspace(0, count - 1, min(count, most))
    return np.unique(places.round().astype(np.int64))


def number_form(values: NDArray[Any]) -> str:
    """Choose one format for numbers that stand together: three digits for the largest, and a sign.

    If most numbers would round to zero, or be very long, all of them get an exponent.

    Examples
    --------
    >>> [written(number_form(np.array([0.4412, -0.05])), one) for one in (0.4412, -0.05, -0.0001)]
    ['+0.441', '−0.050', '0.000']
    >>> number_form(np.array([-1234.5])), number_form(np.array([3e-7])), number_form(np.zeros(2))
    ('+.0f', '+.1e', '+.2f')
    """
    numbers = np.abs(np.asarray(values, dtype=np.float64))
    most = float(numbers[np.isfinite(numbers)].max(initial=0.0))
    power = math.floor(math.log10(most)) if most > 0 else 0
    return f"+.{max(0, 2 - power)}f" if -4 <= power <= 6 else "+.1e"


def written(form: str, value: float) -> str:
    """Write a number with a true minus sign and without an e; a rounded zero has no sign.

    Examples
    --------
    >>> written(".2g", -0.05), written("+.1f", -0.01), written(".3g", 1.77e6)
    ('−0.05', '0.0', '1.77·10⁶')
    """
    text, e, power = f"{value:{form}}".partition("e")
    if float(text) == 0:
        return text.lstrip("+-")
    text = text.replace("-", "\N{MINUS SIGN}")
    return f"{text}·{_power_of_ten(int(power))}" if e else text


def in_powers_of_ten(values: NDArray[Any]) -> tuple[NDArray[np.float64], str]:
    """Divide numbers by a power of ten, so that the largest is in 1..10; return that power too.

    Examples
    --------
    >>> in_powers_of_ten(np.array([0.012, -0.003]))
    (array([ 1.2, -0.3]), '10⁻²')
    """
    numbers = np.asarray(values, dtype=np.float64)
    most = float(np.abs(numbers[np.isfinite(numbers)]).max(initial=0.0))
    power = math.floor(math.log10(most)) if most > 0 else 0
    return numbers / 10.0**power, _power_of_ten(power) if power else "1"


def plain_number(value: float) -> str:
    """Write a number above 0 without an e, however large or small it is.

    Examples
    --------
    >>> [plain_number(one) for one in (1000.0, 0.01, 1e-5, 2e7)]
    ['1,000', '0.01', '10⁻⁵', '2·10⁷']
    """
    if 1e-3 <= value < 1e4:
        return f"{value:,g}"
    factor, _, power = f"{value:.2e}".partition("e")
    scale = _power_of_ten(int(power))
    return scale if float(factor) == 1 else f"{float(factor):g}·{scale}"


def _power_of_ten(power: int) -> str:
    return f"10{str(power).translate(_SUPERSCRIPTS)}"


def spread_apart(values: NDArray[Any], gap: float, low: float, high: float) -> NDArray[np.float64]:
    """Move numbers as little as possible, so that they are ``gap`` apart between ``low`` and ``high``.

    This places the labels of lines beside their ends. If there is too little room the gap is smaller.

    Examples
    --------
    >>> spread_apart(np.array([1.0, 1.0, 5.0]), 2.0, 0.0, 6.0)
    array([0., 2., 5.])
    """
    from scipy.optimize import isotonic_regression

    numbers = np.asarray(values, dtype=np.float64)
    order = np.argsort(numbers, kind="stable")
    steps = np.arange(len(numbers)) * min(gap, (high - low) / max(1, len(numbers) - 1))
    # After their steps are subtracted, numbers that are far enough apart ascend. The nearest ascending
    # numbers are those of isotonic regression; within bounds, these are clipped.
    nearest = isotonic_regression(numbers[order] - steps).x
    apart = np.empty_like(numbers)
    apart[order] = np.clip(nearest, low, high - steps[-1]) + steps
    return apart


def colour_level(value: float, most: float) -> int:
    """Choose a colour, -4 to 4, by the square root, so that one large value leaves others visible.

    Examples
    --------
    >>> colour_level(-1.0, 4.0), colour_level(0.01, 4.0), colour_level(4.0, 4.0), colour_level(3.0, 0.0)
    (-2, 0, 4, 0)
    """
    if most == 0:
        return 0
    return round(math.copysign(LEVELS * math.sqrt(abs(value) / most), value))

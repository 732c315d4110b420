"""Numbers, flags and choices as people give them, checked; numbers become Python's own.

Python's own numbers are what documents hold, and what compares equal with what was stored.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import TrakStoreError

_MOST_BITS = 1000
_LONGEST = 80  # characters of a value in a message


def as_whole(
    value: Any, name: str, least: int | None = None, most: int | None = None, *, needed: str = ""
) -> int:
    """Return a whole number as an ``int``; True and False are no numbers.

    Parameters
    ----------
    value : int, or integer of NumPy or torch
        Value that somebody gave.
    name : str
        Name of the value in the message.
    least, most : int, optional
        Ends of the range.
    needed : str
        Words of the message about what was needed, instead of the range.

    Raises
    ------
    TrakStoreError
        When it is not a whole number, or outside of the range.

    Examples
    --------
    >>> import numpy as np
    >>> as_whole(np.int64(3), "k")
    3
    >>> as_whole(True, "k", 1)
    Traceback (most recent call last):
    trakstore.errors.TrakStoreError: k must be an integer, 1 or more, got True
    """
    if is_whole(value):
        number = operator.index(value)
        if (least is None or number >= least) and (most is None or number <= most):
            return number
    wanted = needed or "must be an integer" + _range(least, most)
    raise TrakStoreError(f"{name} {wanted}, got {shown(value)}")


def as_wholes(values: Any, name: str) -> list[int]:
    """Return a sequence of whole numbers as a list of ``int``.

    Raises
    ------
    TrakStoreError
        When it is no sequence, or something in it is no whole number.

    Examples
    --------
    >>> as_wholes(np.arange(3), "sizes")
    [0, 1, 2]
    >>> as_wholes(3, "sizes")
    Traceback (most recent call last):
    trakstore.errors.TrakStoreError: sizes must be a sequence of integers, got 3
    """
    needed = "must be a sequence of integers"
    if not isinstance(values, Iterable) or getattr(values, "ndim", 1) != 1:
        raise TrakStoreError(f"{name} {needed}, got {shown(values)}")
    return [as_whole(value, name, needed=needed) for value in values]


def as_range(start: Any, stop: Any, count: int, what: str) -> tuple[int, int]:
    """Return both ends of a range of so many things, which are counted from 0.

    Examples
    --------
    >>> as_range(0, 3, 5, "targets")
    (0, 3)
    >>> as_range(0, 9, 5, "targets")
    Traceback (most recent call last):
    trakstore.errors.TrakStoreError: the end of a range of targets must be an integer from 0 to 5, got 9
    """
    first = as_whole(start, f"the start of a range of {what}", 0, count)
    return first, as_whole(stop, f"the end of a range of {what}", first, count)


def as_number(
    value: Any,
    name: str,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    needed: str = "",
) -> float:
    """Return a number as a finite ``float``; True, False and text are no numbers.

    Parameters
    ----------
    value : int or float, or a number of NumPy or torch
        Value that somebody gave.
    name : str
        Name of the value in the message.
    least, above, most : float, optional
        The range: from ``least`` or above ``above``, up to ``most``.
    needed : str
        Words of the message about what was needed, instead of the range.

    Raises
    ------
    TrakStoreError
        When it is not a finite number, or outside of the range.

    Examples
    --------
    >>> import numpy as np
    >>> as_number(np.float32(0.5), "share", above=0, most=1)
    0.5
    >>> as_number("0.5", "share", above=0, most=1)
    Traceback (most recent call last):
    trakstore.errors.TrakStoreError: share must be a number above 0 and at most 1, got '0.5'
    """
    if is_number(value):
        number = float(value)
        low = (least is None or number >= least) and (above is None or number > above)
        if math.isfinite(number) and low and (most is None or number <= most):
            return number
    bounds = (("at least", least), ("above", above), ("at most", most))
    span = " and ".join(f"{words} {bound:g}" for words, bound in bounds if bound is not None)
    wanted = needed or f"must be a {f'number {span}' if span else 'finite number'}"
    raise TrakStoreError(f"{name} {wanted}, got {shown(value)}")


def as_flag(value: Any, name: str) -> bool:
    """Return a flag as a ``bool``; text, numbers and None are none, whose truth is not their meaning.

    Examples
    --------
    >>> as_flag(True, "repair")
    True
    >>> as_flag("no", "repair")
    Traceback (most recent call last):
    trakstore.errors.TrakStoreError: repair must be True or False, got 'no'
    """
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise TrakStoreError(f"{name} must be True or False, got {shown(value)}")


def as_mask(values: Any, name: str) -> NDArray[np.bool_]:
    """Return booleans, or zeros and ones, as an array of bool of the same shape.

    Raises
    ------
    TrakStoreError
        For anything else: of positions, or of weights, the truth is not their meaning.

    Examples
    --------
    >>> as_mask([[0, 1], [1, 1]], "subsets").tolist()
    [[False, True], [True, True]]
    >>> as_mask([0, 2], "subsets")
    Traceback (most recent call last):
    trakstore.errors.TrakStoreError: subsets must be booleans (or 0 and 1), not positions, got [0, 2]
    """
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError):  # ragged lists, tensors that hold a gradient
        array = np.empty(0, dtype=object)
    if array.dtype.kind == "b":
        return array
    if array.dtype.kind in "iuf" and ((array == 0) | (array == 1)).all():
        return array.astype(bool)
    raise TrakStoreError(
        f"{name} must be booleans (or 0 and 1), not positions, got {shown(values)}"
    )


def is_one_of(value: Any, choices: Iterable[str]) -> bool:
    """Tell whether a value is one of some names; anything but a text is none of them.

    An array cannot be asked by ``in``: it has no one truth.

    Examples
    --------
    >>> is_one_of("largest", ("largest", "smallest")), is_one_of(np.ones(2), ("largest",))
    (True, False)
    """
    return isinstance(value, str) and value in tuple(choices)


def is_whole(value: Any) -> bool:
    """Tell whether a value is one whole number, of any library.

    Examples
    --------
    >>> is_whole(3), is_whole(3.0), is_whole(True)
    (True, False, False)
    """
    if not _is_single(value):
        return False
    try:
        operator.index(value)
    except TypeError:
        return False
    return True


def is_number(value: Any) -> bool:
    """Tell whether a value is one real number, of any library; NaN and infinity are."""
    if not _is_single(value) or isinstance(value, str | bytes | bytearray):
        return False
    if isinstance(value, complex) or "complex" in str(getattr(value, "dtype", "")):
        return False
    try:
        float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def shown(value: object) -> str:
    """Write a value for a message: in one line, cut where it is long.

    Examples
    --------
    >>> import numpy as np
    >>> shown(np.zeros((2, 2)))
    'array([[0., 0.], [0., 0.]])'
    """
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:  # Python would not write it out
        return f"a number of some {value.bit_length() * 3 // 10} digits"
    line = " ".join(repr(value).split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."


def _is_single(value: Any) -> bool:
    """Tell whether a value is one value, and no boolean of Python, NumPy or torch."""
    boolean = isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")
    return not boolean and getattr(value, "ndim", 0) == 0


def _range(least: int | None, most: int | None) -> str:
    """Write a range as the end of "must be an integer"."""
    if least is not None and most is not None:
        return f" from {least} to {most}"
    if least is not None:
        return f", {least} or more"
    return "" if most is None else f", {most} or less"

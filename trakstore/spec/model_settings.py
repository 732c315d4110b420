"""Settings of a model's modules, which affect its features and are not part of its weights.

They are kept as short texts under names like ``LayerNorm.eps``, one for all modules of a class: the
common value if it is a number or another plain value, a summary of different numbers or of a tensor,
and a digest of anything else. Only names on both sides are compared, so that a newer version of a
library, whose modules have more or fewer attributes, can continue the split.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from trakstore.errors import SpecMismatchError

__all__ = ["Settings", "check_settings", "summary"]

Settings = tuple[tuple[str, str], ...]  # name and text of each, sorted by name

_REMEDY = (
    "set them as they were, or drop what was made with others (store.drop) and featurize it anew"
)
_NUMBER = 1e-6  # relative: what another library of mathematics may change
_SUMMARY = 1e-5  # of the norm: what another processor, and another order of sums, may change
_SUMMED = re.compile(r"(\d+) numbers, summed (\S+) (\S+) (\S+) (\S+)")
_DIGEST = re.compile(r"(\d+) (\w+), digest [0-9a-f]+")


def summary(count: int, norm: float, sums: Sequence[float]) -> str:
    """Return the text that summarises some numbers: their count, their norm, three weighted sums."""
    return f"{count} numbers, summed {' '.join(f'{one:.10g}' for one in (norm, *sums))}"


def check_settings(
    stored: Settings, got: Settings, where: str, other: str = "this model", remedy: str = _REMEDY
) -> None:
    """Refuse a model whose modules have other settings than those with which rows were made.

    Parameters
    ----------
    stored, got : tuple of (name, text)
        Settings in a split's document, and those of the model. A setting that only one of them has is
        not compared.
    where, other : str
        Names of the split and of the other side, for messages.
    remedy : str
        Last words of the message: what to do.

    Raises
    ------
    SpecMismatchError
        When one differs; the first few are shown.

    Examples
    --------
    >>> check_settings((("Norm.eps", "1e-05"),), (("Norm.eps", "0.1"),), "train")
    Traceback (most recent call last):
    trakstore.errors.SpecMismatchError: train was made by a model whose modules have other \
settings than this model: Norm.eps is 1e-05 there, and 0.1 here. They are no part of the weights, \
and change features: set them as they were, or drop what was made with others (store.drop) and \
featurize it anew
    """
    now = dict(got)
    told = [_told(name, one, now[name]) for name, one in stored if name in now]
    differing = [one for one in told if one]
    if differing:
        rest = f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise SpecMismatchError(
            f"{where} was made by a model whose modules have other settings than {other}: "
            f"{'; '.join(differing[:3])}{rest}. They are no part of the weights, and change features: "
            f"{remedy}"
        )


def _told(name: str, stored: str, got: str) -> str:
    """Say how a setting differs; an empty text if it does not."""
    if stored == got:
        return ""
    one, other = _SUMMED.fullmatch(stored), _SUMMED.fullmatch(got)
    if one and other:
        # A cache that grows with the longest sample has more numbers, but is the same setting.
        if one[1] != other[1] or _alike(one.groups()[1:], other.groups()[1:]):
            return ""
        return f"{name} has other values among its {one[1]} numbers"
    one, other = _DIGEST.fullmatch(stored), _DIGEST.fullmatch(got)
    if one and other:
        return "" if one[1] != other[1] else f"{name} has other values among its {one[1]} {one[2]}"
    if _is_same_number(stored, got):
        return ""
    return f"{name} is {_shown(stored)} there, and {_shown(got)} here"


def _alike(stored: Iterable[str], got: Iterable[str]) -> bool:
    """Tell whether norms and sums are equal up to rounding."""
    pairs = [(float(one), float(other)) for one, other in zip(stored, got, strict=True)]
    scale = max(abs(one) for pair in pairs for one in pair)
    return all(abs(one - other) <= _SUMMARY * scale for one, other in pairs)


def _is_same_number(stored: str, got: str) -> bool:
    try:
        return math.isclose(float(stored), float(got), rel_tol=_NUMBER)
    except ValueError:
        return False


def _shown(text: str) -> str:
    """Return a value for a message; a summary is shown as several values."""
    several = _SUMMED.fullmatch(text) or _DIGEST.fullmatch(text)
    return "not the same in all of them" if several else text

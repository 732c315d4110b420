"""Properties of chosen samples, tested against random draws of the same size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import starmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import TrakStoreError
from trakstore.quantities import as_whole

Describe = Callable[[Any], Mapping[str, float | bool | str]]
F64 = NDArray[np.float64]
_DRAWN = 2**22  # random numbers that are drawn at once


@dataclass(frozen=True)
class Property:
    """A property of chosen samples, compared with all samples.

    Attributes
    ----------
    name : str
        Name of the property; ``name=word`` for one with words as values.
    chosen, all : float
        Means over the chosen samples and over all; shares for a property that is true or false.
    p : float
        Two-sided p-value: share of random draws whose mean is at least as far from that of all.
    corrected : float
        The p-value after Holm's correction for the number of properties tested.

    Examples
    --------
    >>> (even,) = compare_properties(lambda n: {"even": n % 2 == 0}, range(100), range(0, 20, 2))
    >>> even.name, even.chosen, even.all, even.p < 0.01
    ('even', 1.0, 0.5, True)
    """

    name: str
    chosen: float
    all: float
    p: float
    corrected: float


def compare_properties(
    describe: Describe,
    samples: Iterable[Any],
    chosen: Sequence[int] | NDArray[Any],
    *,
    draws: int = 10_000,
    seed: int = 0,
) -> list[Property]:
    """Test whether chosen samples differ from random draws of the same size.

    Parameters
    ----------
    describe : callable
        Function that returns a sample's properties, as numbers, booleans or words by name, with the
        same names for each sample.
    samples : iterable
        All samples from which some were chosen.
    chosen : sequence of int
        Positions of the chosen ones, such as those in a list of scores.
    draws : int
        Number of random draws without replacement; p-values are at least 1 / (draws + 1).
    seed : int
        Seed of the draws.

    Returns
    -------
    list of Property
        One for each property, the smallest p first.

    Raises
    ------
    TrakStoreError
        When nothing is chosen, a position is out of range or repeated, or a sample has other properties
        than the first.

    Examples
    --------
    >>> describe = lambda text: {"length": len(text), "shouts": text.isupper()}
    >>> texts = ["HELP"] * 5 + ["please", "hello", "thanks", "goodbye"] * 5
    >>> for one in compare_properties(describe, texts, [0, 1, 2, 3, 4]):
    ...     print(one.name, one.chosen, one.all, one.p < 0.05)
    length 4.0 5.6 True
    shouts 1.0 0.2 True
    """
    draws, seed = as_whole(draws, "draws", 1), as_whole(seed, "seed", 0)
    names, values = _table([dict(describe(sample)) for sample in samples])
    rows = np.asarray(chosen).reshape(-1)
    # A mask, or fractions, would be converted to positions of other samples.
    whole = rows.size > 0 and rows.dtype.kind in "iu"
    inside = whole and bool(((rows >= 0) & (rows < len(values))).all())
    if not inside or len(np.unique(rows)) < rows.size:
        raise TrakStoreError(
            f"chosen must be some positions in 0..{len(values) - 1}, each once, got {rows.tolist()[:9]}"
        )
    mean, whole = values[rows].mean(0), values.mean(0)
    distance = np.abs(mean - whole)
    far = np.zeros(len(names), dtype=np.int64)
    for drawn in _means(values, rows.size, draws, np.random.default_rng(seed)):
        # The same rows drawn in another order have the same mean up to rounding, which counts as a tie.
        far += (np.abs(drawn - whole) >= distance * (1 - 1e-12)).sum(0)
    # Under the null the chosen samples are one of the draws: they are counted, so that p is never 0.
    p = (1 + far) / (1 + draws)
    columns = (names, *(column.tolist() for column in (mean, whole, p, _holm(p))))
    return sorted(starmap(Property, zip(*columns, strict=True)), key=lambda one: one.p)


def modular_addition(modulus: int) -> Describe:
    """Make a function that returns properties of samples ``(a, b, ...)`` of a + b modulo ``modulus``.

    Raises
    ------
    TrakStoreError
        When the modulus is not an integer of at least 1.

    Examples
    --------
    >>> modular_addition(7)((3, 5))["carries"], modular_addition(7)((3, 5))["sum"]
    (True, 1)
    """
    modulus = as_whole(modulus, "modulus", 1)

    def describe(sample: Any) -> dict[str, float | bool | str]:
        a, b = (int(one) for one in sample[:2])
        apart = min((a - b) % modulus, (b - a) % modulus)
        return {
            "sum": (a + b) % modulus,
            "carries": a + b >= modulus,
            "equal": a == b,
            "has zero": 0 in (a, b),
            "distance": apart,
            "smaller": min(a, b),
            "larger": max(a, b),
        }

    return describe


def _table(described: list[dict[str, Any]]) -> tuple[list[str], F64]:
    """List names and values (samples, properties); each word becomes a true-or-false property."""
    if not described:
        raise TrakStoreError("there are no samples")
    columns: dict[str, list[float]] = {}
    for name in described[0]:
        if any(one.keys() != described[0].keys() for one in described):
            raise TrakStoreError(f"every sample needs the properties {sorted(described[0])}")
        given = [one[name] for one in described]
        if any(isinstance(one, str) for one in given):
            for word in sorted(set(map(str, given))):
                columns[f"{name}={word}"] = [float(str(one) == word) for one in given]
        else:
            columns[name] = [float(one) for one in given]
    values = np.array(list(columns.values())).T
    if not np.isfinite(values).all():
        raise TrakStoreError("a property is NaN or infinite")
    return list(columns), values


def _means(values: F64, size: int, draws: int, rng: np.random.Generator) -> Iterable[F64]:
    """Compute means of random draws, some at a time."""
    step = max(1, _DRAWN // len(values))
    for start in range(0, draws, step):
        count = min(step, draws - start)
        # The positions of the smallest of independent random numbers are a draw without replacement.
        rows = np.argpartition(rng.random((count, len(values))), size - 1, axis=1)[:, :size]
        yield values[rows].mean(1)


def _holm(p: F64) -> F64:
    """Correct p-values by Holm: the i-th smallest of m times m - i + 1, never below one before it."""
    order = np.argsort(p, kind="stable")
    raised = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(raised, 1)
    return corrected

"""Forms of samples, by which one that differs from the others is found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils import _pytree as tree

__all__ = ["forms", "unlike"]


def forms(sample: Any, *, shapes: bool) -> list[str]:
    """Return the form of each number or tensor of a sample, with its place in it.

    Integers and floats of Python have one form, since a table has either in one column. Without
    ``shapes``, tensors with equally many dimensions have one form.
    """
    whole = dict(sample) if isinstance(sample, Mapping) else sample
    named = []
    for path, leaf in tree.tree_flatten_with_path(whole)[0]:
        if isinstance(leaf, Tensor | np.ndarray):
            kind = str(leaf.dtype).removeprefix("torch.")
            kind += f" of {tuple(leaf.shape)}" if shapes else f" of {leaf.ndim} dimensions"
        else:
            number = isinstance(leaf, int | float | np.number)
            kind = "a number" if number else f"a {type(leaf).__name__}"
        named.append(f"{kind}{' at ' if path else ''}{tree.keystr(path)}")
    return named


def unlike(sample: list[str], first: list[str]) -> str:
    """Say how a sample's forms differ from the first sample's; an empty text where they do not.

    Examples
    --------
    >>> unlike(forms([0.5, "a"], shapes=True), forms([1, 2], shapes=True))
    'a str at [1], and the first sample a number at [1]'
    """
    if len(sample) != len(first):
        return f"{len(sample)} numbers or tensors, and the first sample {len(first)}"
    pairs = [(one, other) for one, other in zip(sample, first, strict=True) if one != other]
    return f"{pairs[0][0]}, and the first sample {pairs[0][1]}" if pairs else ""

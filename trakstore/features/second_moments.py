"""Second moments of gradients, factored, whose fourth roots divide the gradients.

A matrix of second moments v is kept as its row and column means, v[r, c] ≈ R[r]·C[c]/mean, as in
Adafactor (Shazeer and Stern, 2018). Rows r are divided by R^(1/4) and columns by C^(1/4), so that
products of two samples' features are divided by √v, as a step of Adam is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from trakstore.errors import NumericsError, TrakStoreError
from trakstore.features.projectors.projector import as_matrix
from trakstore.spec import ParameterSpec

__all__ = ["Moments", "factored", "scale_factors"]

# A row or column whose moment is less than this share of the mean is raised to it: one that some
# samples never touched would otherwise be multiplied without bound.
_LEAST = 1e-4


class Moments(NamedTuple):
    """Factored second moments of one parameter seen as (first dimension, rest), float64.

    Attributes
    ----------
    rows : Tensor, shape (rows,)
        Means over the columns.
    columns : Tensor, shape (columns,)
        Means over the rows.
    """

    rows: Tensor
    columns: Tensor


def factored(moments: Mapping[str, Tensor], parameters: ParameterSpec) -> dict[str, Moments]:
    """Factor second moments that are given as whole tensors.

    Parameters
    ----------
    moments : mapping of name to Tensor
        Second moments of every parameter of the spec, in its shape, none negative.

    Raises
    ------
    TrakStoreError
        When a parameter has none, or one of another shape.
    NumericsError
        When one is negative or not finite.
    """
    made = {}
    for name, shape in parameters.shapes:
        if name not in moments:
            raise TrakStoreError(
                f"the scale has no second moments of {name!r}; it has {sorted(moments)[:5]}"
            )
        given = torch.as_tensor(moments[name]).detach().cpu().to(torch.float64)
        if tuple(given.shape) != shape:
            raise TrakStoreError(
                f"second moments of {name!r} have shape {tuple(given.shape)}, the parameter has {shape}"
            )
        if not bool((given >= 0).all() & given.isfinite().all()):
            raise NumericsError(f"second moments of {name!r} are negative, or not finite")
        matrix = given.reshape(as_matrix(shape))
        made[name] = Moments(matrix.mean(1), matrix.mean(0))
    return made


def scale_factors(moments: Mapping[str, Moments]) -> dict[str, tuple[Tensor, Tensor]]:
    """Compute the factors of rows and columns, float32, that divide gradients by v^(1/4).

    One further number multiplies all of them, so that scaled gradients have the old mean squared
    length: Σ v = s² Σ √v.

    Raises
    ------
    NumericsError
        When all moments are zero.
    """
    bounded = {name: _bounded(one) for name, one in moments.items()}
    total = sum(float(one.rows.sum()) * len(one.columns) for one in bounded.values())
    if not 0 < total < float("inf"):
        raise NumericsError(
            f"second moments sum to {total}: there is nothing to scale gradients by; give others, or "
            f"leave scale= out"
        )
    roots = sum(_sum_of_roots(one) for one in bounded.values())
    whole = (total / roots) ** 0.5
    return {name: _factors(one, whole) for name, one in bounded.items()}


def _bounded(moments: Moments) -> Moments:
    mean = moments.rows.mean()
    # Rows and columns that are raised no longer have quite the same mean, which does no harm.
    return Moments(*(one.clamp(min=_LEAST * float(mean)) for one in moments))


def _sum_of_roots(moments: Moments) -> float:
    """Compute the sum of √v over a parameter, where v is the product of its factors."""
    mean = float(moments.rows.mean())
    return (
        float(moments.rows.sqrt().sum() * moments.columns.sqrt().sum()) / mean**0.5 if mean else 0.0
    )


def _factors(moments: Moments, whole: float) -> tuple[Tensor, Tensor]:
    mean = float(moments.rows.mean())
    if not mean:  # the parameter has no gradients, and so nothing to scale
        return torch.ones(len(moments.rows)), torch.ones(len(moments.columns))
    rows, columns = (one**-0.25 * mean**0.125 for one in moments)
    return (rows * whole).to(torch.float32), columns.to(torch.float32)

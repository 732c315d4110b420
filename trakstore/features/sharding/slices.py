"""Parts of parameters that ranks hold under tensor parallel, and which rank counts what.

A sketch is linear: each rank adds its rows or columns of a weight's gradient at their true places, and
the sum over the ranks is the whole. A gradient that all of them compute alike is added by one rank,
chosen by the parameter's name, so that this work is shared too.
"""

from __future__ import annotations

import zlib
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trakstore.errors import TrakStoreError
from trakstore.features.sharding.places import local_part

__all__ = ["Span", "Tensors", "is_part", "part_to_add", "span_of", "whole_gradient"]


class Span(NamedTuple):
    """Rows (``dim`` 0) or columns (1) of a parameter, seen as (first dimension, rest), of a rank."""

    dim: int
    start: int
    stop: int


class Tensors(NamedTuple):
    """Ranks that share each layer: groups on the model's device and on the CPU, rank, their number."""

    group: Any
    cpu: Any
    rank: int
    size: int

    def counts(self, name: str) -> bool:
        """Tell whether this rank counts what all compute alike of a parameter."""
        return zlib.crc32(name.encode()) % self.size == self.rank


def span_of(name: str, parameter: Tensor) -> Span | None:
    """Return the part of a parameter that this rank holds; None where it is all of it.

    Raises
    ------
    TrakStoreError
        When it is divided in another way than by rows, or a matrix by columns.
    """
    placements: Any = getattr(parameter, "placements", None)
    if placements is None or all(one.is_replicate() for one in placements):
        return None
    (placement,) = placements
    dim = placement.dim % parameter.ndim if placement.is_shard() else -1
    if dim not in (0, 1) or (dim and parameter.ndim != 2):
        raise TrakStoreError(
            f"the parameter {name} of shape {tuple(parameter.shape)} is divided between ranks as "
            f"{placement}; by tensor parallel, parameters are divided by rows, or matrices by columns"
        )
    mesh: Any = parameter.device_mesh  # type: ignore[attr-defined]
    size = parameter.shape[dim]
    each = -(-size // mesh.size())  # as torch.chunk divides
    start = min(size, mesh.get_local_rank() * each)
    return Span(dim, start, min(size, start + each))


def is_part(gradient: Tensor) -> bool:
    """Tell whether ranks hold parts of a gradient, and not all of them the whole."""
    placements: Any = getattr(gradient, "placements", ())
    return not all(one.is_replicate() for one in placements)


def _divided(*placements: Any) -> bool:
    return any(one.is_shard() for one in placements)


def whole_gradient(gradient: Tensor) -> Tensor | None:
    """Return a gradient that each rank has whole; None where they have parts of one."""
    return None if is_part(gradient) else _arrived(local_part(gradient))


@torch.no_grad()
def part_to_add(
    name: str, parameter: Tensor, gradient: Tensor, tensors: Tensors | None
) -> Tensor | None:
    """Return what this rank adds of a parameter's gradient, at the place of what it holds of it."""
    if tensors is None:
        return gradient
    own: Any = gradient
    held: Any = getattr(parameter, "placements", None)
    # Sums over ranks that are still to be made may stay so, since features are summed up anyway.
    if held is not None and own.placements != held and _divided(*held, *own.placements):
        own = own.redistribute(placements=held)
    if not is_part(own) and not tensors.counts(name):
        return None
    return _arrived(local_part(own))


def _arrived(part: Tensor) -> Tensor:
    """Wait for a sum over ranks that is still on its way."""
    wait = getattr(part, "wait", None)
    there: Tensor = part if wait is None else wait()
    return there

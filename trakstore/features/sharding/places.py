"""Modules that FSDP2 shards, the places of their weights, and what a rank holds of a tensor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

__all__ = [
    "Part",
    "Unit",
    "local_part",
    "own_part",
    "param_groups",
    "part_of",
    "units_of",
    "whole_tensor",
]

Part = tuple[slice, ...]  # of a tensor, a slice of each dimension


def local_part(tensor: Tensor) -> Tensor:
    """Return what this rank holds of a tensor: all of it, or a ``DTensor``'s local part."""
    # Not `to_local`, which autograd would see.
    part: Tensor = getattr(tensor, "_local_tensor", tensor)
    return part


def whole_tensor(tensor: Tensor) -> Tensor:
    """Gather a tensor from all ranks that hold parts of it; one that is whole is given back."""
    gather = getattr(tensor, "full_tensor", None)
    gathered: Tensor = tensor if gather is None else gather()
    return gathered


def own_part(spread: Tensor) -> Part | None:
    """Return the part of a tensor that this rank holds; None of a tensor that is whole here."""
    if local_part(spread) is spread:
        return None
    return part_of(tuple(spread.shape), spread)


def part_of(shape: tuple[int, ...], like: Any) -> Part:
    """Return the part that this rank holds of a tensor that is divided like a given one."""
    mesh = like.device_mesh
    bounds = [(0, size) for size in shape]
    # FSDP divides what tensor parallel left to a rank, and its dimension of the mesh stands before.
    for dim in reversed(range(mesh.ndim)):
        placement = like.placements[dim]
        if not placement.is_replicate():
            start, stop = bounds[placement.dim]
            each = -(-(stop - start) // mesh.size(dim))  # as torch.chunk divides
            start = min(stop, start + each * mesh.get_local_rank(dim))
            bounds[placement.dim] = start, min(stop, start + each)
    return tuple(slice(*one) for one in bounds)


@dataclass(frozen=True, eq=False)
class Unit:
    """A module whose weights ``fully_shard`` gathers together.

    Attributes
    ----------
    module : FSDPModule
    places : tuple of (Module, str, Parameter)
        Owner, name and sharded parameter of each weight that is gathered.
    """

    module: Any
    places: tuple[tuple[nn.Module, str, nn.Parameter], ...]

    @property
    def sharded(self) -> bool:
        """Tell whether the weights are not gathered now."""
        owner, name, parameter = self.places[0]
        return owner._parameters[name] is parameter

    def gathered(self) -> None:
        """Gather the weights and let go of them, as a rank without use for them does."""
        self.module.unshard()
        self.module.reshard()

    def seen(self) -> list[nn.Parameter | None]:
        """Return the parameters that a pass sees in the places: the same objects in every pass."""
        self.module.unshard()
        now = [owner._parameters[name] for owner, name, _ in self.places]
        self.module.reshard()
        return now


def units_of(model: nn.Module) -> list[Unit]:
    """List the modules that FSDP2 shards, in the order in which they stand in the model."""
    try:
        from torch.distributed.fsdp import FSDPModule
    except ImportError:  # a torch without distributed
        return []
    modules: list[Any] = [one for one in model.modules() if isinstance(one, FSDPModule)]
    for one in modules:
        one.reshard()  # weights of the root stay gathered after a forward of its owner's
    units = [Unit(one, tuple(_own(one, FSDPModule))) for one in modules]
    return [one for one in units if one.places]


def _own(module: nn.Module, kind: type) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Yield the sharded weights of a module that are not of a sharded module within it."""
    for name, parameter in module._parameters.items():
        if parameter is not None and hasattr(parameter, "_local_tensor"):
            yield module, name, parameter
    for child in module.children():
        if not isinstance(child, kind):
            yield from _own(child, kind)


def param_groups(state: Any) -> list[Any]:
    """Return the parts of what FSDP knows of a module: one until torch 2.12, several from then on."""
    several = getattr(state, "_fsdp_param_groups", None)
    return [state._fsdp_param_group] if several is None else list(several)

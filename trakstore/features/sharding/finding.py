"""The sharding that a model came with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trakstore.errors import TrakStoreError
from trakstore.features.sharding.lockstep import Lockstep
from trakstore.features.sharding.places import Unit, units_of
from trakstore.features.sharding.sharding import WHOLE, Sharding
from trakstore.features.sharding.slices import Tensors

__all__ = ["sharding_of"]


def sharding_of(model: nn.Module) -> Sharding:
    """Find out how a model is spread over ranks; all of them ask at once.

    Raises
    ------
    TrakStoreError
        When it is spread in a way that features cannot be computed in.
    """
    _refuse_first_version(model)
    if not any(hasattr(one, "_local_tensor") for one in model.parameters()):
        return WHOLE
    _refuse_renormalising(model)
    units = tuple(units_of(model))
    if units and not hasattr(torch.cpu.Stream, "record_event") and _is_on_cpu(units[0]):
        raise TrakStoreError(
            f"FSDP2 of torch {torch.__version__} gathers on GPUs alone; take a later torch for the CPU"
        )
    pairs = _pairs(units)
    seen = [pairs.get(id(one), one) for one in model.parameters()]
    tensors = _tensors(dict(zip(dict(model.named_parameters()), seen, strict=True)))
    shards = _shards(units, pairs)
    ranks = _all_of(shards, tensors)
    firsts: list[int] = [0] * dist.get_world_size()
    dist.all_gather_object(firsts, ranks[0])
    copies = sorted(set(firsts))
    return Sharding(
        Lockstep(model, units, _on_cpu(ranks)),
        units,
        pairs,
        replica=copies.index(ranks[0]),
        replicas=len(copies),
        number=shards.index(dist.get_rank()),
        numbers=len(shards),
        tensors=tensors,
    )


def _is_on_cpu(unit: Unit) -> bool:
    return unit.places[0][2].device.type == "cpu"


def _on_cpu(ranks: list[int]) -> Any:
    return dist.new_group(ranks, backend="gloo", use_local_synchronization=True)


def _tensors(parameters: Mapping[str, Tensor]) -> Tensors | None:
    """Return the ranks that share each layer, which all divided parameters must have in common."""
    mesh: Any = None
    for name, one in parameters.items():
        own: Any = getattr(one, "device_mesh", None)
        if own is None:
            continue
        same = mesh is None or torch.equal(own.mesh, mesh.mesh)
        if own.ndim > 1 or not same:
            raise TrakStoreError(
                f"the parameter {name} is divided between ranks {own.mesh.tolist()}, others between "
                f"{(own if mesh is None else mesh).mesh.tolist()}: experts on ranks of their own, and "
                f"meshes of several dimensions within a layer, have no features yet; divide all layers "
                f"by one dimension of ranks, and leave experts whole"
            )
        mesh = own
    if mesh is None:
        return None
    ranks = mesh.mesh.flatten().tolist()
    return Tensors(mesh.get_group(), _on_cpu(ranks), mesh.get_local_rank(), mesh.size())


def _shards(units: Sequence[Unit], pairs: Mapping[int, nn.Parameter]) -> list[int]:
    """List the ranks between which FSDP2 divides what this rank has; itself where it does not."""
    shards: list[int] | None = None
    for unit in units:
        for _, name, sharded in unit.places:
            own: Any = sharded
            # Behind FSDP's own dimensions of the mesh is that of tensor parallel.
            dims = own.device_mesh.ndim - hasattr(pairs[id(sharded)], "device_mesh")
            ranks = own.device_mesh.mesh
            for dim in reversed(range(own.device_mesh.ndim)):
                if dim >= dims or own.placements[dim].is_replicate():
                    ranks = ranks.select(dim, own.device_mesh.get_local_rank(dim))
            held = ranks.flatten().tolist()
            if shards is not None and held != shards:
                raise TrakStoreError(
                    f"FSDP divides {name} between the ranks {held}, and others between {shards}: "
                    f"shard all modules with one mesh"
                )
            shards = held
    return [dist.get_rank()] if shards is None else shards


def _all_of(shards: list[int], tensors: Tensors | None) -> list[int]:
    """List all ranks that hold a part of this copy of the model."""
    if tensors is None:
        return sorted(shards)
    every: list[list[int]] = [[]] * tensors.size
    dist.all_gather_object(every, shards, group=tensors.cpu)
    return sorted({rank for each in every for rank in each})


def _refuse_renormalising(model: nn.Module) -> None:
    """Refuse modules that write to weights, which are gathered anew for each pass."""
    for name, module in model.named_modules():
        if getattr(module, "max_norm", None) is not None:
            raise TrakStoreError(
                f"{name} changes its weights in a forward (max_norm), which a sharded model forgets: "
                f"do it to the weights once, set max_norm = None, and shard that model"
            )


def _refuse_first_version(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if type(module).__name__ == "FullyShardedDataParallel":
            raise TrakStoreError(
                f"{name or 'the model'} is wrapped by FSDP's first version "
                f"(FullyShardedDataParallel), which flattens its parameters: shard it by "
                f"torch.distributed.fsdp.fully_shard, or give it unwrapped and let --fsdp shard it"
            )


def _pairs(units: tuple[Unit, ...]) -> dict[int, nn.Parameter]:
    pairs = {}
    for unit in units:
        for (_, name, sharded), seen in zip(unit.places, unit.seen(), strict=True):
            if seen is None or seen is sharded:
                raise TrakStoreError(f"the parameter {name} is not gathered by its FSDP module")
            if seen.dtype != sharded.dtype:
                raise TrakStoreError(
                    f"FSDP gathers {name} in {seen.dtype}, and it is {sharded.dtype}: features would "
                    f"not be of the model's precision; shard it without MixedPrecisionPolicy, and give "
                    f"autocast='bfloat16', or convert the model"
                )
            pairs[id(sharded)] = seen
    return pairs

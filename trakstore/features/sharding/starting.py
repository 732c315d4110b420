"""Ranks that a launcher started, and the model that they are to share."""

from __future__ import annotations

import ctypes
import hashlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trakstore.errors import TrakStoreError
from trakstore.features.sharding.heartbeats import telling_failures

__all__ = ["Shard", "free_at_once", "shard_blocks", "shard_model", "started_ranks"]

# Shards a model in place: is given the model and the mesh of the ranks.
Shard = Callable[[nn.Module, Any], Any]

_SAMPLED = 64  # numbers of each parameter that ranks compare
_MMAP_THRESHOLD = -3  # of glibc's malloc.h
_LARGE = 1 << 20  # bytes


@contextmanager
def started_ranks(device: torch.device, tp: int = 1) -> Iterator[Any]:
    """Join the ranks that torchrun started; give their mesh, and leave them at the end.

    Parameters
    ----------
    device : torch.device
    tp : int
        Ranks that share each block of samples, by tensor parallel.

    Returns
    -------
    DeviceMesh
        Of shape (ranks,), its dimension named "data"; with ``tp`` of shape (ranks / tp, tp), named
        "data" and "tensor".

    Raises
    ------
    TrakStoreError
        When no launcher started the ranks, or ``tp`` does not divide them; with the error of another
        rank, when that failed.
    """
    from torch.distributed.device_mesh import init_device_mesh

    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        raise TrakStoreError(
            "the ranks of a sharded model are started by torchrun: "
            "torchrun --nproc-per-node 4 -m trakstore featurize JOB --store PATH --fsdp"
        )
    ranks = int(os.environ["WORLD_SIZE"])
    if ranks % tp:
        raise TrakStoreError(f"{ranks} ranks cannot be divided into groups of {tp} (--tp)")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        free_at_once()
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        whole = (ranks // tp, tp) if tp > 1 else (ranks,)
        names = ("data", "tensor") if tp > 1 else ("data",)
        with telling_failures():
            yield init_device_mesh(device.type, whole, mesh_dim_names=names)
    finally:
        dist.destroy_process_group()


def free_at_once() -> None:
    """Have the C library return large blocks as they are freed, for the rest of the process.

    glibc keeps freed blocks for later use, but gathered weights of other sizes do not fit into them:
    the memory of a rank would grow to that of the whole model. Other libraries have no such setting.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGE)


def shard_model(model: nn.Module, mesh: Any, shard: Shard | None = None) -> None:
    """Shard a model in place, as a function does it, or block by block.

    Raises
    ------
    TrakStoreError
        When the ranks built different models, or tensor parallel is asked for and no function says how.
    """
    _need_alike(model)
    if shard is not None:
        shard(model, mesh)
    elif mesh.ndim > 1:
        raise TrakStoreError(
            "--tp divides layers between ranks, and the model does not say how: give the job "
            "shard=function, which calls parallelize_module(model, mesh['tensor'], plan) and then "
            "fully_shard with mesh['data']"
        )
    else:
        shard_blocks(model, mesh)


def shard_blocks(model: nn.Module, mesh: Any) -> None:
    """Shard each child of every ``ModuleList`` by FSDP2, then the whole model.

    Lists within such a child are left to it: experts, for one, are called as the samples want it, and
    what FSDP gathers must not depend on that. A child that shares a parameter with the rest of the
    model is gathered with the whole. Modules of another dtype than most parameters around them, such as
    float32 adapters in a bfloat16 model, are sharded each by itself, as FSDP2 gathers parameters of one
    dtype together.

    Raises
    ------
    TrakStoreError
        When a module has parameters of several dtypes of its own.
    """
    from torch.distributed.fsdp import fully_shard

    places = _places(model)
    blocks = [block for block in _blocks(model) if _is_apart(block, places)]
    within = {module for block in blocks for module in block.modules()}
    rest = [module for module in model.modules() if module not in within]
    for together in (*([*block.modules()] for block in blocks), rest):
        for module in _of_other_dtypes(together):
            fully_shard(module, mesh=mesh)
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def _own_parameters(modules: Iterable[nn.Module]) -> Iterator[nn.Parameter]:
    """Yield the parameters of modules, those that several share once for each."""
    for module in modules:
        yield from (one for one in module._parameters.values() if one is not None)


def _is_apart(block: nn.Module, places: Mapping[int, int]) -> bool:
    """Tell whether all places of a block's parameters, as counted in the model, are within it."""
    return all(places[one] == count for one, count in _places(block).items())


def _places(model: nn.Module) -> Counter[int]:
    """Count the places of each parameter, by its id: modules may be in several, too."""
    modules = (module for _, module in model.named_modules(remove_duplicate=False))
    return Counter(map(id, _own_parameters(modules)))


def _of_other_dtypes(modules: Sequence[nn.Module]) -> list[nn.Module]:
    """List modules whose parameters are of another dtype than most of those gathered with them."""
    numbers = Counter[torch.dtype]()
    for one in _own_parameters(modules):
        numbers[one.dtype] += one.numel()
    most = max(numbers, key=numbers.__getitem__, default=None)
    others = []
    for module in modules:
        dtypes = {one.dtype for one in _own_parameters([module])}
        if dtypes <= {most}:
            continue
        # Lists of parameters are never called, and nothing would gather them.
        if len(dtypes) > 1 or isinstance(module, nn.ParameterList | nn.ParameterDict):
            names = ", ".join(sorted(map(str, numbers)))
            raise TrakStoreError(
                f"FSDP2 gathers parameters of one dtype together, and a {type(module).__name__} is in "
                f"a module with parameters of {names}: convert the model, as by "
                f"model.to(torch.bfloat16), or give the job shard=function"
            )
        others.append(module)
    return others


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child.children()
        else:
            yield from _blocks(child)


def _need_alike(model: nn.Module) -> None:
    """Raise unless all ranks have the same numbers: a rank would give its part of another model."""
    digest = hashlib.sha256()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        if not tensor.is_meta:
            digest.update(_some(tensor))
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, digest.hexdigest())
    if len(set(every)) > 1:
        raise TrakStoreError(
            "the ranks built different models: let all of them build the same one, from one file or "
            "after torch.manual_seed(0)"
        )


def _some(tensor: Tensor) -> bytes:
    flat = tensor.detach().reshape(-1)
    chosen = flat[:: max(1, flat.numel() // _SAMPLED)].contiguous().cpu()
    return chosen.view(torch.uint8).numpy().tobytes()

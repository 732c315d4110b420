"""The device of a worker, set so that every run computes the same bits."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.backends import cudnn

from trakstore.errors import TrakStoreError
from trakstore.features.precision import matrix_products
from trakstore.features.ranks import local_rank
from trakstore.features.spread import first_device, is_spread
from trakstore.features.wording import first_line
from trakstore.planning import human_bytes
from trakstore.spec import Precision

__all__ = [
    "check_determinism",
    "device_of",
    "need_one_device",
    "need_room",
    "worker_device",
    "working_on",
]

log = logging.getLogger("trakstore")


def worker_device(asked: str | None = None) -> torch.device:
    """Return the device asked for, else this worker's GPU where there is one, else the CPU.

    A worker that sees one GPU, as launchers often arrange it, takes that.

    Raises
    ------
    TrakStoreError
        When the device cannot be used, or more workers are on the machine than GPUs.
    """
    if asked is not None:
        return _usable(asked)
    if not torch.cuda.is_available():
        return torch.device("cpu")
    count, local = torch.cuda.device_count(), local_rank()
    if count == 1:
        return torch.device("cuda:0")
    if local >= count:
        raise TrakStoreError(
            f"this is worker {local} of its machine, counted from 0, which has {count} GPUs; start "
            f"{count} workers a machine, or say device="
        )
    return torch.device(f"cuda:{local}")


def _usable(asked: str) -> torch.device:
    """Return the device, if numbers can be kept on it."""
    reason = "tensors there have no numbers"
    try:
        if torch.empty(0, device=asked).device.type != "meta":
            return torch.device(asked)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:  # torch raises any
        reason = first_line(error).split(". ")[0]
    count = torch.cuda.device_count()
    others = f", or cuda:0 to cuda:{count - 1}" if count else "; torch sees no GPU here"
    raise TrakStoreError(f"device {asked!r} cannot be used ({reason}): use cpu{others}")


def device_of(model: nn.Module, asked: str | None) -> torch.device:
    """Return the device for a worker's batches: of a spread model, that of its first layer.

    Raises
    ------
    TrakStoreError
        When another device is asked for a model that is spread, or one that cannot be used.
    """
    if not is_spread(model):
        return worker_device(asked)
    first = first_device(model)
    if asked is not None and torch.device(asked) != first:
        raise TrakStoreError(
            f"the model is spread over devices, and stays there: its samples go to {first}, where its "
            f"first layer is; leave device={asked!r} out"
        )
    return first


def need_one_device(model: nn.Module) -> None:
    """Raise a :class:`TrakStoreError` unless all of a model is on one device, with its numbers.

    Each worker computes whole gradients of its samples, so that the model must be on one device, and is
    moved there. A model on several devices would not fit; only if accelerate spread it, its hooks move
    activations between them. One on ``meta``, or offloaded, has no numbers there.
    """
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    if any(device.type == "meta" for device in devices):
        raise TrakStoreError(
            "the model has parameters on the meta device, which have no numbers (offloaded, or not "
            "loaded yet); load all of it onto one device, such as the CPU"
        )
    if len(devices) > 1 and not is_spread(model):
        names = ", ".join(sorted(map(str, devices)))
        raise TrakStoreError(
            f"the model is spread over {names}; each worker computes with a model of its own on one "
            f"device: move it to the CPU, choose a part of it that fits by itself, or load it with "
            f"device_map=, by which accelerate spreads it over GPUs"
        )


def need_room(model: nn.Module, device: torch.device) -> None:
    """Raise a :class:`TrakStoreError` for a model that alone is larger than a GPU's memory."""
    if device.type != "cuda" or is_spread(model):
        return
    tensors = {id(one): one for one in (*model.parameters(), *model.buffers())}
    size = sum(one.numel() * one.element_size() for one in tensors.values())
    room = torch.cuda.get_device_properties(device).total_memory
    if size > room:
        raise TrakStoreError(
            f"the model takes {human_bytes(size)}, and {device} has {human_bytes(room)}: share it "
            f"between GPUs (torchrun --nproc-per-node N -m trakstore featurize ... --fsdp, or "
            f"torch.distributed.fsdp.fully_shard before), or choose a smaller dtype"
        )


@contextmanager
def working_on(device: torch.device, precision: Precision = "float32") -> Iterator[None]:
    """Have a GPU give the same bits in every run, and compute products in one precision.

    Without this, convolutions use TF32, which has 10 bits, and whichever algorithm is fastest; products
    of matrices use what the process has set. All settings are put back.
    """
    tf32 = precision == "tf32"
    with matrix_products(tf32=tf32):
        if device.type == "cuda":
            with _same_bits(device, tf32):
                yield
        else:
            yield


@contextmanager
def _same_bits(device: torch.device, tf32: bool) -> Iterator[None]:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch asks for it
    before = torch.are_deterministic_algorithms_enabled()
    only_warned = torch.is_deterministic_algorithms_warn_only_enabled()
    options: Any = torch.utils.deterministic
    filled = options.fill_uninitialized_memory
    exact = cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=tf32)
    with torch.cuda.device(device), exact:
        torch.use_deterministic_algorithms(True)
        options.fill_uninitialized_memory = False  # a cost that buys nothing here
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before, warn_only=only_warned)
            options.fill_uninitialized_memory = filled


def check_determinism(device: torch.device, run: Callable[[], Any]) -> None:
    """Try whether a pass can have the same bits in every run; if not, warn and allow it.

    Parameters
    ----------
    device : torch.device
    run : callable
        A forward and backward pass of the model. torch refuses operations that have no deterministic
        implementation, until it is set to warn only.
    """
    if device.type != "cuda":
        return
    try:
        run()
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        reason = first_line(error).split(". ")[0]
        log.warning("features may differ in their last bits from run to run: %s", reason)
        torch.use_deterministic_algorithms(True, warn_only=True)

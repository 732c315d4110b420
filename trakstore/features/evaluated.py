"""A model in eval mode on a device, without wrappers around its forward."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from trakstore.features.fitness import fit_modules, need_weights
from trakstore.features.sharding import local_part

__all__ = ["evaluated"]


def _exact(device: str = "cpu") -> torch.autocast:
    """Return a context in which autocast is off."""
    return torch.autocast(device, enabled=False)


@contextmanager
def evaluated(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Put a model in eval mode on a device; restore every module's mode, and the device, at the end.

    Inference mode and autocast of the caller are off within, and so is the autocast that accelerate
    wraps around a trained model's forward. Parts that ``torch.compile`` made run uncompiled: compiled
    code cannot be watched.

    Raises
    ------
    TrakStoreError
        When it is scripted, or has modules without weights.
    """
    need_weights(model)
    first = next(model.parameters(), None)
    # A model that is spread over ranks stays where its parts are.
    home = first.device if first is not None and local_part(first) is first else device
    with fit_modules(model), _own_forward(model), _uncompiled():
        try:
            if home != device:
                model.to(device)
            with torch.inference_mode(False), _exact(), _exact(device.type):
                yield
        finally:
            if home != device:
                model.to(home)


@contextmanager
def _uncompiled() -> Iterator[None]:
    """Run everything that is compiled as if it were not."""
    # Only a process that has compiled something has the compiler, which takes seconds to import.
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def _own_forward(model: nn.Module) -> Iterator[None]:
    """Give a model its own forward, in place of accelerate's wrapper with autocast."""
    wrapped = model.__dict__.get("forward")
    own = model.__dict__.get("_original_forward")
    if wrapped is None or own is None:
        yield
        return
    model.forward = own
    try:
        yield
    finally:
        model.forward = wrapped

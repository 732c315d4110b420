"""A model that runs with other tensors in place of its parameters, and gets its own back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

__all__ = ["exchanged"]


@contextmanager
def exchanged(model: nn.Module, others: Mapping[int, Tensor]) -> Iterator[None]:
    """Put other tensors in place of parameters, wherever a model holds these; put all back at the end.

    ``torch.func.functional_call`` goes by names: a module registered under two of them has its
    parameters exchanged twice, and gets the other tensors back as its own. Here each module is visited
    once.

    Buffers that the forward assigns anew are put back too: a tensor made under ``vmap`` is dead when
    that ends, and the next pass could not read it.

    Parameters
    ----------
    model : nn.Module
    others : mapping of int to Tensor
        Tensors by the ids of the parameters that they stand for.
    """
    places = [place for module in model.modules() for place in _places(module)]
    try:
        for registry, own in places:
            for name, tensor in own.items():
                if id(tensor) in others:
                    registry[name] = others[id(tensor)]
        yield
    finally:
        for registry, own in places:
            _put_back(registry, own)


def _places(module: nn.Module) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield where a module holds tensors, each with what is there now."""
    for registry in (module._parameters, module._buffers):
        yield registry, dict(registry.items())


def _put_back(registry: Any, own: Mapping[str, Any]) -> None:
    # Scripted modules' registries have no other ways to ask them.
    for name in [name for name in registry.keys() if name not in own]:  # noqa: SIM118
        del registry[name]
    for name, tensor in own.items():
        if name not in registry or registry[name] is not tensor:
            registry[name] = tensor

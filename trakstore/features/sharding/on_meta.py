"""Models that are built without numbers, and get them once they are sharded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from trakstore.errors import TrakStoreError

__all__ = ["built_on_meta", "with_memory"]


class _Unfilled(TorchFunctionMode):
    """Tensors without values of their own are made on ``meta``; constants have their numbers."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # `types` is torch's
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def built_on_meta(factory: Callable[[], Any]) -> nn.Module:
    """Call a function that builds a model, whose parameters take no memory then.

    Buffers that are computed, such as frequencies of rotary positions, have their numbers: no
    checkpoint may hold them.

    Raises
    ------
    TrakStoreError
        When the function gives no module.
    """
    with _Unfilled():
        model = factory()
    if not isinstance(model, nn.Module):
        raise TrakStoreError(
            f"model must be an nn.Module or a function that builds one, it gave a "
            f"{type(model).__name__}"
        )
    for places in _places(model):
        module, name = places[0]
        one: Any = module._parameters[name]
        empty = nn.Parameter(one.to("meta"), requires_grad=one.requires_grad)
        for other, other_name in places:
            other._parameters[other_name] = empty
    return model


def with_memory(model: nn.Module, device: torch.device) -> None:
    """Give parameters on ``meta`` memory on a device, without numbers; of a sharded model, its parts.

    Raises
    ------
    TrakStoreError
        When a buffer has no numbers, which no checkpoint need hold.
    """
    if not any(one.is_meta for one in model.parameters()):
        return
    for name, buffer in model.named_buffers():
        if buffer.is_meta:
            raise TrakStoreError(
                f"the buffer {name} was made on the meta device and has no numbers: let the function "
                f"that builds the model fill it (torch.zeros, torch.arange)"
            )
    tied = _places(model)

    def made(tensor: Tensor) -> Tensor:
        return torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.to(device)

    model._apply(made)
    for (first, first_name), *others in tied:
        for module, name in others:
            module._parameters[name] = first._parameters[first_name]


def _places(model: nn.Module) -> list[list[tuple[nn.Module, str]]]:
    """List the places of each parameter: several where modules share it."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, one in module._parameters.items():
            if one is not None:
                places.setdefault(id(one), []).append((module, name))
    return list(places.values())

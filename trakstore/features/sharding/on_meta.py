"""Models that are built without numbers, and get them once they are sharded."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as tree

from trakstore.errors import TrakStoreError

__all__ = [
    "built_on_meta",
    "forget_numbers",
    "has_own_numbers",
    "note_loaded",
    "unloaded",
    "whole_with_memory",
    "with_memory",
]

# Of each model that was given memory here, its parameters by name, and whether they were loaded since.
# The model is the key, not a job: jobs are copied (dataclasses.replace) and share their model.
_LOADED: WeakKeyDictionary[nn.Module, dict[str, bool]] = WeakKeyDictionary()
_REGISTERED = ("_parameters", "_buffers", "_modules")


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
        When the function gives no module, or one with a buffer or another tensor without numbers.
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
    _need_numbers(model)
    return model


def _need_numbers(model: nn.Module) -> None:
    """Refuse tensors on ``meta`` that are no parameters: nothing would give them numbers later."""
    for path, module in model.named_modules():
        for key, value in {**vars(module), **module._buffers}.items():
            # Modules such as nn.LSTM list their parameters once more, and renew the list.
            if key not in _REGISTERED and any(
                isinstance(one, Tensor) and one.is_meta and not isinstance(one, nn.Parameter)
                for one in tree.tree_leaves(value)
            ):
                what = "buffer" if key in module._buffers else "tensor"
                raise TrakStoreError(
                    f"the {what} {f'{path}.{key}' if path else key} was made by torch.empty, or on the "
                    f"meta device, and has no numbers: let the function that builds the model make it "
                    f"with its numbers (torch.zeros, torch.full, torch.arange), or give the module "
                    f"itself"
                )


def with_memory(model: nn.Module, device: torch.device) -> None:
    """Give parameters on ``meta`` memory on a device, without numbers; of a sharded model, its parts.

    They count as not loaded until :func:`note_loaded` names them.

    Raises
    ------
    TrakStoreError
        When a buffer has no numbers, which no checkpoint need hold.
    """
    made_here = [name for name, one in model.named_parameters() if one.is_meta]
    if not made_here:
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
    _LOADED.setdefault(model, {}).update(dict.fromkeys(made_here, False))


def whole_with_memory(model: nn.Module) -> None:
    """Give parameters on ``meta`` memory on the CPU, unless ranks share the model.

    A rank of a sharded model has memory for its parts from :func:`with_memory`, after sharding.
    """
    if not any(hasattr(one, "_local_tensor") for one in model.parameters()):
        with_memory(model, torch.device("cpu"))


def unloaded(model: nn.Module) -> list[str]:
    """List the parameters that have memory from here, and no numbers yet."""
    return [name for name, loaded in _LOADED.get(model, {}).items() if not loaded]


def note_loaded(model: nn.Module, names: Iterable[str]) -> None:
    """Note that the entries of a model's state dict with these names have been loaded."""
    made_here = _LOADED.get(model)
    if made_here is None:
        return
    state: dict[str, Any] = model.state_dict(keep_vars=True)
    # Hooks of wrappers may give entries other names than the parameters have; tied ones have several.
    loaded = {key for name in names for key in (name, id(state[name]))}
    for name, one in model.named_parameters():
        if name in made_here and (name in loaded or id(one) in loaded):
            made_here[name] = True


def forget_numbers(model: nn.Module) -> None:
    """Count parameters that have memory from here as not loaded again."""
    for name in (made_here := _LOADED.get(model, {})):
        made_here[name] = False


def has_own_numbers(model: nn.Module) -> bool:
    """Tell whether a parameter has numbers that no checkpoint gave it."""
    made_here = _LOADED.get(model, {})
    return any(not one.is_meta and name not in made_here for name, one in model.named_parameters())


def _places(model: nn.Module) -> list[list[tuple[nn.Module, str]]]:
    """List the places of each parameter: several where modules share it."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, one in module._parameters.items():
            if one is not None:
                places.setdefault(id(one), []).append((module, name))
    return list(places.values())

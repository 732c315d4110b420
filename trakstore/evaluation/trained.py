"""Models that were trained as others were beside them: each as it was made, and what it became."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn


class NotStackable(Exception):
    """Models that cannot be trained as one, with what they have of their own."""


@dataclass(frozen=True, eq=False)
class Trained:
    """A model as it was made, and what its parameters and buffers became.

    Attributes
    ----------
    model : Module
        The model, whose parameters and buffers have the values that it was made with.
    state : dict of Tensor
        Values by the names of ``named_parameters`` and ``named_buffers``: a tensor that has several
        names, such as tied weights, stands under its first, and buffers that no state dict has are
        among them.
    """

    model: nn.Module
    state: dict[str, Tensor]

    @contextmanager
    def in_model(self) -> Iterator[nn.Module]:
        """Lend the model with the trained values; afterwards it has those that it was made with."""
        with untouched(self.model):
            for name, tensor in tensors_of(self.model).items():
                # By ``data``, not ``copy_``: a buffer may have become one of another shape.
                tensor.data = self.state[name]
            for name, module, key in _buffers_not_there(self.model):
                # The model has made it in training.
                if name in self.state:
                    module._buffers[key] = self.state[name]
            yield self.model


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Give the model copies of its values, and its own back afterwards.

    One and the same module may be made for several models, which all begin with its values. The tensors
    stay, whatever they hold: whatever names a tied weight has, it is one tensor.
    """
    own = [(tensor, tensor.data) for tensor in tensors_of(model).values()]
    buffers = [(module, dict(module._buffers)) for module in model.modules()]
    for tensor, values in own:
        tensor.data = values.clone()
    try:
        yield
    finally:
        # A buffer may be another tensor now.
        for module, named in buffers:
            module._buffers.update(named)
        for tensor, values in own:
            tensor.data = values


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers, each once, by its first name."""
    return dict(chain(model.named_parameters(), model.named_buffers()))


def slots_of(model: nn.Module) -> dict[str, str]:
    """Return the places of parameters and buffers in modules, each with the first name of its tensor.

    A tied weight has several places, and a module that has several names has each of its own once.
    """
    first = {id(tensor): name for name, tensor in tensors_of(model).items()}
    return {
        _name(prefix, name): first[id(tensor)]
        for prefix, module in model.named_modules()
        for name, tensor in chain(
            module.named_parameters(recurse=False), module.named_buffers(recurse=False)
        )
    }


class Attributes:
    """Tensors and numbers that a module holds beside parameters and buffers, as they are now.

    Stacked models run as the first one, with parameters and buffers of their own: what else a model
    draws when it is made, or changes when it is trained, would be the first one's in all, or be lost.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._values = {
            name: (value, value.clone() if isinstance(value, Tensor) else value)
            for name, value in _attributes(model).items()
        }

    def need_alike(self, models: Iterable[nn.Module]) -> None:
        """Raise :class:`NotStackable` where other models have other attributes."""
        for model in models:
            own = _attributes(model)
            for name in self._values.keys() | own.keys():
                both = name in self._values and name in own
                if not both or not _equal(self._values[name][1], own[name]):
                    raise NotStackable(f"their {name} is no parameter or buffer, and differs")

    def need_unchanged(self) -> None:
        """Raise :class:`NotStackable` where the module has changed some, or has new ones."""
        now = _attributes(self._model)
        for name in self._values.keys() | now.keys():
            if name not in self._values or name not in now or self._is_changed(name, now[name]):
                raise NotStackable(f"their {name} is no parameter or buffer, and changes")

    def _is_changed(self, name: str, now: Tensor | float | None) -> bool:
        value, copy = self._values[name]
        # Another tensor may be one within vmap, which cannot be compared with any outside.
        return (isinstance(now, Tensor) and now is not value) or not _equal(now, copy)


def _attributes(model: nn.Module) -> dict[str, Tensor | float | None]:
    """Tensors and numbers that modules hold beside parameters and buffers, and buffers not there."""
    held: dict[str, Tensor | float | None] = {
        _name(prefix, key): value
        for prefix, module in model.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, Tensor | int | float)
    }
    return held | {name: None for name, _, _ in _buffers_not_there(model)}


def _buffers_not_there(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Yield the names of buffers that are None, each with its module and its name there."""
    for prefix, module in model.named_modules():
        for key, value in module._buffers.items():
            if value is None:
                yield _name(prefix, key), module, key


def _name(prefix: str, key: str) -> str:
    return f"{prefix}.{key}" if prefix else key


def _equal(one: Tensor | float | None, other: Tensor | float | None) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    return type(one) is type(other) and bool(one == other)

"""Models that were trained as others were beside them: each as it was made, and what it became."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Trained:
    """A model as it was made, and what its parameters and buffers became.

    Attributes
    ----------
    model : Module
        The model, which has not changed.
    state : dict of Tensor
        Values by the names of ``named_parameters`` and ``named_buffers``: a tensor that has several
        names, such as tied weights, stands under its first, and buffers that no state dict has are
        among them.
    """

    model: nn.Module
    state: dict[str, Tensor]

    @contextmanager
    def in_model(self) -> Iterator[nn.Module]:
        """Lend the model with the trained values; afterwards it has those that it was made with.

        One and the same module may have been made for several models, which all begin with its values.
        """
        # The tensors stay and take other values: whatever names a tied weight has, it is one tensor.
        tensors = dict(chain(self.model.named_parameters(), self.model.named_buffers()))
        before = {name: tensor.data for name, tensor in tensors.items()}
        _set(tensors, self.state)
        try:
            yield self.model
        finally:
            _set(tensors, before)


def unlike_attribute(models: list[nn.Module]) -> str | None:
    """Return the name of an attribute by which models differ; None where they may be stacked.

    Stacked models run as the first one, with parameters and buffers of their own: a tensor or number
    beside these, which each drew for itself, would be the first one's in all.
    """
    first = _attributes(models[0])
    for model in models[1:]:
        own = _attributes(model)
        for name in first.keys() | own.keys():
            if name not in first or name not in own or not _equal(first[name], own[name]):
                return name
    return None


def _set(tensors: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    # By ``data``, not ``copy_``: a buffer may have become one of another shape.
    for name, tensor in tensors.items():
        tensor.data = values[name]


def _attributes(model: nn.Module) -> dict[str, Tensor | float]:
    """Tensors and numbers that modules hold beside parameters and buffers, by name."""
    return {
        f"{prefix}.{name}".lstrip("."): value
        for prefix, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, Tensor | int | float)
    }


def _equal(one: Tensor | float, other: Tensor | float) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    return type(one) is type(other) and bool(one == other)

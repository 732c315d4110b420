"""Outputs or inputs of named layers: a second kind of feature, stored beside the gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as tree

from trakstore.errors import NotFoundError, TrakStoreError, did_you_mean
from trakstore.features.outputs import ModelOutput
from trakstore.features.parameters import canonical_name
from trakstore.features.plain import copied
from trakstore.storage import layout

__all__ = ["NamedActivations"]

_INPUT = ".input"


@dataclass(frozen=True)
class NamedActivations:
    """The activations of some modules of a model, each sample's as one row.

    Attributes
    ----------
    model : nn.Module
    output : ModelOutput
        Output that calls the model on a batch.
    layers : str or sequence of str
        Names of modules, whose outputs are meant; ``{name}.input`` is what a module is given. Of a
        tuple, the first tensor.

    Raises
    ------
    NotFoundError
        When the model has no such module.
    """

    model: nn.Module
    output: ModelOutput
    layers: str | Sequence[str] = ()
    _modules: dict[str, tuple[nn.Module, bool]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        names = (self.layers,) if isinstance(self.layers, str) else tuple(self.layers)
        known = {canonical_name(name): module for name, module in self.model.named_modules()}
        modules = {f"{layout.ACTIVATIONS}{name}": _module(name, known) for name in names}
        object.__setattr__(self, "_modules", modules)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns in which they are stored, sorted."""
        return tuple(sorted(self._modules))

    def of(self, batch: Any) -> dict[str, Tensor]:
        """Compute activations by column, each ``(batch, width)``, float32: one forward pass.

        Raises
        ------
        TrakStoreError
            When a module is called never or more than once, or does not have samples first.
        """
        if not self._modules:
            return {}
        size = len(tree.tree_leaves(batch)[0])
        with torch.no_grad(), self._watched() as seen:
            self.output(self.model, copied(batch))
        return {name: _rows(name, seen[name], size) for name in self.columns}

    @contextmanager
    def _watched(self) -> Iterator[dict[str, list[Tensor | None]]]:
        seen: dict[str, list[Tensor | None]] = {name: [] for name in self.columns}
        # Hooks are removed also when the forward raises: the model is the user's.
        with ExitStack() as hooks:
            for name, (module, before) in self._modules.items():
                hook = _keep(module, seen[name], before)
                hooks.callback(hook.remove)
            yield seen


def _module(name: str, known: dict[str, nn.Module]) -> tuple[nn.Module, bool]:
    """Return the module of that name, and whether its input is meant."""
    layout.check_name(f"{layout.ACTIVATIONS}{name}", "layer's column")
    if name and name in known:
        return known[name], False
    owner = name.removesuffix(
        _INPUT
    )  # a module may be called "input" itself: it was looked up first
    if owner != name and owner in known:
        return known[owner], True
    raise NotFoundError(
        f"the model has no module {name!r}{did_you_mean(name, filter(None, known))}"
    )


def _keep(module: nn.Module, into: list[Tensor | None], before: bool) -> Any:
    if before:
        return module.register_forward_pre_hook(
            lambda _, args, kwargs: into.append(_first((args, kwargs))), with_kwargs=True
        )
    return module.register_forward_hook(lambda _, __, output: into.append(_first(output)))


def _first(tensors: Any) -> Tensor | None:
    """Return a copy of the first tensor."""
    # A copy, since the next layer may change the tensor itself in place.
    first = next((one for one in tree.tree_leaves(tensors) if isinstance(one, Tensor)), None)
    return None if first is None else first.detach().clone()


def _rows(name: str, seen: list[Tensor | None], size: int) -> Tensor:
    # A layer that is used twice has two activations a sample, and one that is not used has none.
    if len(seen) != 1:
        raise TrakStoreError(
            f"{name} was computed {len(seen)} times in a forward pass; name a layer that is used once"
        )
    (first,) = seen
    if first is None or first.ndim == 0 or len(first) != size:
        got = None if first is None else tuple(first.shape)
        raise TrakStoreError(
            f"{name} must have its {size} samples in the first dimension, got shape {got}; name "
            f"another layer"
        )
    return first.reshape(size, -1).to(torch.float32)

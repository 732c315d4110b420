"""Outputs or inputs of named layers: a second kind of feature, stored beside the gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as tree

from trakstore.errors import NotFoundError, TrakStoreError, did_you_mean
from trakstore.features.axes import Axis, Following
from trakstore.features.gradients import FAILURES, batch_size, cut
from trakstore.features.outputs import ModelOutput
from trakstore.features.parameters import canonical_name
from trakstore.features.plain import copied
from trakstore.features.quantised import hidden_products
from trakstore.features.recording import Recorder
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

        Where it is not certain that a layer has the samples in order, each as it would be alone, as
        within a model that sorts them by length on its way, there is one pass for each sample.

        Raises
        ------
        TrakStoreError
            When a module is called never or more than once, or does not have samples first.
        """
        if not self._modules:
            return {}
        size = batch_size(batch)
        together = self._passed(batch, size)
        if all(one.in_order for one in together.values()):
            return {name: one.rows for name, one in together.items()}
        parts = [self._passed(cut(batch, at, at + 1), 1) for at in range(size)]
        return {name: torch.cat([part[name].rows for part in parts]) for name in self.columns}

    def _passed(self, batch: Any, size: int) -> dict[str, _Seen]:
        """Compute activations of a batch by one pass, in which the samples are followed."""
        kept = (*self.model.parameters(), *self.model.buffers())
        following = Following(size, frozenset(map(id, kept)))
        recorder = Recorder({}, _unasked, following, hidden_products(self.model))
        try:
            # Gradients are on: what a function makes out of sight is known by being in their graph.
            with torch.enable_grad(), self._watched(following) as seen:
                recorder.outputs(self.output, self.model, copied(batch))
        except torch.OutOfMemoryError:
            raise
        except FAILURES:  # of what a model cannot do while it is watched; else it comes up again
            with torch.no_grad(), self._watched(None) as seen:
                self.output(self.model, copied(batch))
        return {name: _Seen.of(name, seen[name], size) for name in self.columns}

    @contextmanager
    def _watched(self, following: Following | None) -> Iterator[dict[str, list[_Call]]]:
        seen: dict[str, list[_Call]] = {name: [] for name in self.columns}
        # Hooks are removed also when the forward raises: the model is the user's.
        with ExitStack() as hooks:
            for name, (module, before) in self._modules.items():
                hook = _keep(module, partial(_note, seen[name], following), before)
                hooks.callback(hook.remove)
            yield seen


class _Call(NamedTuple):
    """Copy of the first tensor of a module's call, and whether each sample is surely in its place."""

    first: Tensor | None
    in_order: bool


class _Seen(NamedTuple):
    """Activations of a batch, shape (batch, width), and whether each is surely that of its sample."""

    rows: Tensor
    in_order: bool

    @classmethod
    def of(cls, name: str, calls: list[_Call], size: int) -> _Seen:
        # A layer that is used twice has two activations a sample, and one that is not used has none.
        if len(calls) != 1:
            raise TrakStoreError(
                f"{name} was computed {len(calls)} times in a forward pass; name a layer that is used "
                f"once"
            )
        ((first, in_order),) = calls
        if first is None or first.ndim == 0 or len(first) != size:
            got = None if first is None else tuple(first.shape)
            raise TrakStoreError(
                f"{name} must have its {size} samples in the first dimension, got shape {got}; name "
                f"another layer"
            )
        if first.is_complex():
            raise TrakStoreError(
                f"{name} gives complex numbers; activations are real: name another layer"
            )
        return cls(first.reshape(size, -1).to(torch.float32), in_order or size == 1)


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


def _keep(module: nn.Module, note: Callable[[Any], None], before: bool) -> Any:
    if before:
        return module.register_forward_pre_hook(
            lambda _, args, kwargs: note((args, kwargs)), with_kwargs=True
        )
    return module.register_forward_hook(lambda _, __, output: note(output))


def _note(into: list[_Call], following: Following | None, tensors: Any) -> None:
    first = next((one for one in tree.tree_leaves(tensors) if isinstance(one, Tensor)), None)
    in_order = first is not None and following is not None and _is_in_order(first, following)
    # A copy, since the next layer may change the tensor itself in place.
    into.append(_Call(None if first is None else first.detach().clone(), in_order))


def _is_in_order(tensor: Tensor, following: Following) -> bool:
    # What the model asked of all samples at once up to here may have sent some another way than alone.
    asked = (*following.decided, *following.told)
    apart = not following.mixed and not any(bool(others.any()) for others in asked)
    return apart and following.of(tensor) == Axis(0)


def _unasked(*_: Any) -> Tensor:
    raise AssertionError("no layer has one of no parameters")

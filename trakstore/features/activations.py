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
from trakstore.features.followed_pass import FollowedPass
from trakstore.features.gradients import FAILURES, batch_size, cut
from trakstore.features.outputs import ModelOutput
from trakstore.features.parameters import canonical_name
from trakstore.features.plain import copied
from trakstore.storage import layout

__all__ = ["NamedActivations"]

_INPUT = ".input"
# Relative difference of a row that rounding explains: this, or so many times that of a single number.
_ROUNDING, _STEPS = 1e-3, 16


@dataclass(eq=False)
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
    _pass: FollowedPass = field(init=False, repr=False)
    _mixed: bool = field(init=False, repr=False)
    _drawn: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        names = (self.layers,) if isinstance(self.layers, str) else tuple(self.layers)
        known = {canonical_name(name): module for name, module in self.model.named_modules()}
        self._modules = {f"{layout.ACTIVATIONS}{name}": _module(name, known) for name in names}
        self._pass = FollowedPass(self.model)
        self._mixed = self._pass.scripted

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
        if not self._mixed:
            together = self._passed(batch, size)
            if all(one.in_order for one in together.values()):
                # What is mixed out of sight may be so in any batch from here on.
                self._mixed = not self._are_apart(batch, size, together)
                if not self._mixed:
                    return {name: one.rows for name, one in together.items()}
        parts = [self._passed(cut(batch, at, at + 1), 1) for at in range(size)]
        return {name: torch.cat([part[name].rows for part in parts]) for name in self.columns}

    def _are_apart(self, batch: Any, size: int, together: dict[str, _Seen]) -> bool:
        """Compare some of the samples with themselves alone.

        Those are, of each question that the model asked of all samples at once, one that alone would
        have given another answer, as it may have gone another way then; and one that is drawn, since
        what scripts mix is out of sight.
        """
        if size == 1:
            return True
        self._drawn += 1
        chosen = {int(self._drawn * 0.6180339887498949 % 1 * size)}
        for others in {id(one): one for seen in together.values() for one in seen.asked}.values():
            chosen |= set(others.nonzero()[:1, 0].tolist())
        for at in sorted(chosen):
            alone = self._passed(cut(batch, at, at + 1), 1)
            pairs = ((one, alone[name].rows[0]) for name, one in together.items())
            if not all(_alike(one.rows[at], row, one.precision) for one, row in pairs):
                return False
        return True

    def _passed(self, batch: Any, size: int) -> dict[str, _Seen]:
        """Compute activations of a batch by one pass, in which the samples are followed."""
        following = self._pass.following(size)
        try:
            # Gradients are on: what a function makes out of sight is known by being in their graph.
            with torch.enable_grad(), self._watched(following) as seen:
                self._pass.outputs(self.output, copied(batch), following)
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
    """Copy of the first tensor of a module's call, and whether each sample is surely in its place.

    Of each question that the model asked of all samples before, those that would differ alone.
    """

    first: Tensor | None
    in_order: bool
    asked: tuple[Tensor, ...] = ()


class _Seen(NamedTuple):
    """Activations of a batch, shape (batch, width), and whether each is surely that of its sample.

    They are float32, and were computed with some relative precision.
    """

    rows: Tensor
    in_order: bool
    precision: float
    asked: tuple[Tensor, ...]

    @classmethod
    def of(cls, name: str, calls: list[_Call], size: int) -> _Seen:
        # A layer that is used twice has two activations a sample, and one that is not used has none.
        if len(calls) != 1:
            raise TrakStoreError(
                f"{name} was computed {len(calls)} times in a forward pass; name a layer that is used "
                f"once"
            )
        ((first, in_order, asked),) = calls
        if first is not None:
            _need_dense(name, first)
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
        precision = torch.finfo(first.dtype).eps if first.is_floating_point() else 0.0
        return cls(
            first.reshape(size, -1).to(torch.float32), in_order or size == 1, precision, asked
        )


def _need_dense(name: str, activations: Tensor) -> None:
    # Nested tensors have no sizes that could be asked for, sparse ones no rows that could be cut apart.
    if activations.is_nested or activations.layout is not torch.strided:
        layout_name = str(activations.layout).removeprefix("torch.")
        got = "a nested tensor" if activations.is_nested else f"a tensor of layout {layout_name}"
        raise TrakStoreError(
            f"{name} gives {got}; activations are dense, of one width for all samples: name another "
            f"layer"
        )


def _module(name: str, known: dict[str, nn.Module]) -> tuple[nn.Module, bool]:
    """Return the module of that name, and whether its input is meant."""
    layout.check_name(f"{layout.ACTIVATIONS}{name}", "layer's column")
    if name and name in known:
        _need_hooks(name, known[name])
        return known[name], False
    owner = name.removesuffix(
        _INPUT
    )  # a module may be called "input" itself: it was looked up first
    if owner != name and owner in known:
        _need_hooks(owner, known[owner])
        return known[owner], True
    raise NotFoundError(
        f"the model has no module {name!r}{did_you_mean(name, filter(None, known))}"
    )


def _need_hooks(name: str, module: nn.Module) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        raise TrakStoreError(
            f"{name} is a module of TorchScript, which does not say what it gives; name a layer that "
            f"holds it"
        )


def _keep(module: nn.Module, note: Callable[[Any], None], before: bool) -> Any:
    if before:
        return module.register_forward_pre_hook(
            lambda _, args, kwargs: note((args, kwargs)), with_kwargs=True
        )
    return module.register_forward_hook(lambda _, __, output: note(output))


def _note(into: list[_Call], following: Following | None, tensors: Any) -> None:
    first = next((one for one in tree.tree_leaves(tensors) if isinstance(one, Tensor)), None)
    # A copy, since the next layer may change the tensor itself in place.
    kept = None if first is None else first.detach().clone()
    if first is None or following is None:
        into.append(_Call(kept, in_order=False))
        return
    in_order = not following.mixed and following.of(first) == Axis(0)
    into.append(_Call(kept, in_order, tuple(following.decided)))


def _alike(row: Tensor, alone: Tensor, precision: float) -> bool:
    """Tell whether a row is that of its sample alone, but for rounding on the way."""
    apart, size = (row - alone).norm(), alone.norm()
    return not bool(apart > max(_ROUNDING, _STEPS * precision) * size)

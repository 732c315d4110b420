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
# Relative difference of a row that rounding explains: the first, or the second times the spacing of
# numbers in the layer's dtype, whichever is larger.
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
        Names of modules whose outputs are stored; ``{name}.input`` names what a module is given. Of a
        tuple, the first tensor is taken.

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

        Where a layer may not have the samples in order, each as it would be alone (a model may sort
        them by length on its way), each sample has a pass of its own.

        Raises
        ------
        TrakStoreError
            When a module is called more than once or not at all, or does not have samples first.
        """
        if not self._modules:
            return {}
        size = batch_size(batch)
        if not self._mixed:
            together = self._passed(batch, size)
            if all(one.in_order for one in together.values()):
                # Rows that are wrong although every sample was seen in its place were mixed out of
                # sight: any later batch may be so too, and is computed sample by sample.
                self._mixed = not self._are_apart(batch, size, together)
                if not self._mixed:
                    return {name: one.rows for name, one in together.items()}
        parts = [self._passed(cut(batch, at, at + 1), 1) for at in range(size)]
        return {name: torch.cat([part[name].rows for part in parts]) for name in self.columns}

    def _are_apart(self, batch: Any, size: int, together: dict[str, _Seen]) -> bool:
        """Compare some of the samples with themselves alone.

        One sample is drawn at random, since what scripts mix is out of sight. And for each question
        that the model asked of all samples at once ("is any of you longer than 8?"), one sample is
        compared to which the answer would have been another alone: it may have taken another branch.
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
            # Gradients are on since a function that hides what it does is known only by its node in the
            # autograd graph.
            with torch.enable_grad(), self._watched(following) as seen:
                self._pass.outputs(self.output, copied(batch), following)
        except torch.OutOfMemoryError:
            raise
        except FAILURES:  # the model cannot be watched; any fault of its own is raised again below
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
    """A call of a module: a copy of its first tensor, and what is known of the samples in it.

    Attributes
    ----------
    first : Tensor or None
        None where there is no tensor.
    in_order : bool
        Whether each sample is surely in its place.
    asked : tuple of Tensor, bool, shape (batch,)
        For each question that the model had asked of all samples: those for which the answer alone
        would be another.
    """

    first: Tensor | None
    in_order: bool
    asked: tuple[Tensor, ...] = ()


class _Seen(NamedTuple):
    """Activations of a batch.

    Attributes
    ----------
    rows : Tensor, shape (batch, width), float32
    in_order : bool
        Whether each row is surely that of its sample.
    precision : float
        Relative spacing of numbers in the dtype that they were computed in; 0 for integers.
    asked : tuple of Tensor, bool, shape (batch,)
        As in :class:`_Call`.
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
    """Return the module of that name, and whether its input is the one to be stored."""
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
    """Tell whether a row equals that of its sample alone, but for rounding."""
    apart, size = (row - alone).norm(), alone.norm()
    return not bool(apart > max(_ROUNDING, _STEPS * precision) * size)

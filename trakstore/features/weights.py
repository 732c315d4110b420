"""Weights that belong to a model alone: separated from checkpoints, copied and restored."""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections import ChainMap, UserDict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from types import MappingProxyType
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from trakstore.errors import TrakStoreError
from trakstore.features.sharding import forget_numbers, has_own_numbers, local_part

__all__ = ["Kept", "kept", "own_copy", "shares_memory", "state_dicts", "unshared"]

K = TypeVar("K")
Span = tuple[int, int]  # first byte, and the one after the last


def unshared(checkpoints: Mapping[K, Any], model: nn.Module) -> Mapping[K, Any]:
    """Return the same checkpoints, with copies of those that share memory with the model.

    ``model.state_dict()`` refers to the model's own tensors, which change when another checkpoint is
    loaded or training takes a step. Only what is shared costs memory; files do not.

    Parameters
    ----------
    checkpoints : mapping of name to anything
        State dicts are checked; anything else is passed on, even a mapping that is no dict, since it
        may read its values when asked for them.
    model : nn.Module

    Examples
    --------
    >>> model = nn.Linear(2, 1)
    >>> own = unshared({5: {"weight": torch.ones(1, 2)}, 10: model.state_dict()}, model)
    >>> _ = model.load_state_dict({"weight": torch.zeros(1, 2), "bias": torch.zeros(1)})
    >>> bool((own[10]["weight"] == 0).any())
    False
    """
    # Other mappings may read a file for each value: checking them would read every checkpoint.
    if not isinstance(checkpoints, dict | MappingProxyType | ChainMap | UserDict):
        return checkpoints
    copies = {
        name: _copied(state)
        for name, state in checkpoints.items()
        if isinstance(state, Mapping) and shares_memory(state, model)
    }
    return {**checkpoints, **copies} if copies else checkpoints


def shares_memory(state: Mapping[Any, Any], model: nn.Module) -> bool:
    """Tell whether a tensor in a state dict, or in one nested in it, lies in the model's memory."""
    return _overlap(_spans(chain(model.parameters(), model.buffers())), _spans(_values(state)))


def _values(state: Mapping[Any, Any]) -> Iterator[Any]:
    for value in state.values():
        if isinstance(value, Mapping):
            yield from _values(value)
        else:
            yield value


def state_dicts(checkpoints: Mapping[K, Any], model: nn.Module) -> Mapping[K, Any]:
    """Return paths, and state dicts that do not change when another is loaded into their model."""
    states = {
        name: one.state_dict() if isinstance(one, nn.Module) else one
        for name, one in checkpoints.items()
    }
    return unshared(states, model)


@contextmanager
def kept(model: nn.Module, *, parameters: bool = True) -> Iterator[None]:
    """Restore a model's own parameters and buffers at the end, whatever happened.

    Meanwhile a copy of them is held on the CPU, which takes as much memory as the model, or of the
    buffers alone. Parameters that were built without numbers are not copied, unless others have
    numbers: they count as not loaded again at the end.
    """
    own = Kept.of(model, also=None if parameters and has_own_numbers(model) else ())
    try:
        yield
    finally:
        own.give_back()
        forget_numbers(model)


def own_copy(model: nn.Module) -> nn.Module:
    """Make a deep copy of a model, even one that holds tensors computed from its parameters.

    Raises
    ------
    TrakStoreError
        When it holds something that cannot be copied, such as a lock or an open file.
    """
    # torch refuses to copy tensors with a gradient history: their values are copied without it.
    memo: dict[int, Any] = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    try:
        own = copy.deepcopy(model, memo)
    except (RuntimeError, TypeError) as error:
        raise TrakStoreError(
            f"the model cannot be copied ({error}): checkpoints are loaded into a copy, so that the "
            f"model that is given keeps its weights; take what cannot be copied out of the model"
        ) from error
    # A wrapper of torch.compile is copied without its hooks.
    for name, hooks in vars(model).items():
        if "_hooks" in name and isinstance(hooks, dict) and hooks and not vars(own).get(name):
            vars(own)[name] = copy.copy(hooks)
    return own


@dataclass(frozen=True)
class _Place:
    """Place of a tensor in a model, the tensor itself, and a copy of its values on the CPU."""

    name: str
    registry: dict[str, Any]
    key: str
    tensor: Tensor
    values: Tensor

    @property
    def differs(self) -> bool:
        """Tell whether the model has other values there now."""
        there = self.registry.get(self.key)
        now = None if there is None else local_part(there)
        if now is None or not _alike(now, self.values):
            return True
        pairs = zip(_numbers(now.detach().cpu()), _numbers(self.values), strict=True)
        return not all(torch.equal(*pair) or bool(_same(*pair).all()) for pair in pairs)

    def give_back(self) -> None:
        there = self.registry.get(self.key)
        if there is None or not _alike(local_part(there), self.values):
            # Another tensor was put there. The original comes back, since optimisers and tied modules
            # hold that one.
            self.registry[self.key] = there = self.tensor
        now = local_part(there)
        if not _alike(now, self.values):
            now.data = self.values.to(now.device)
        elif torch.is_inference_mode_enabled() or not now.is_inference():  # else it is read-only
            _copy(self.values, now)


@dataclass(frozen=True)
class Kept:
    """Tensors of a model, with copies of their values on the CPU, and its states that are no tensors.

    For a model that is spread over ranks these are the rank's own parts.
    """

    places: tuple[_Place, ...]
    extra: tuple[tuple[nn.Module, Any], ...]

    @classmethod
    def of(cls, model: nn.Module, *, also: Collection[str] | None = None) -> Self:
        """Copy all tensors of a model, or its buffers and ``also`` the parameters of these names."""
        tensors = [
            (f"{path}.{key}" if path else key, registry, key, tensor)
            for path, module in model.named_modules(remove_duplicate=False)
            for registry in (module._parameters, module._buffers)
            for key, tensor in registry.items()
            if tensor is not None and not is_lazy(tensor) and not tensor.is_meta
        ]
        chosen = [
            (name, registry, key, tensor)
            for name, registry, key, tensor in tensors
            if also is None or name in also or not isinstance(tensor, nn.Parameter)
        ]
        copies = {id(tensor): tensor for *_, tensor in chosen}  # a tied tensor once
        # Of a sharded model these are this rank's parts, and no other rank is asked.
        held = {one: local_part(tensor).detach() for one, tensor in copies.items()}
        copies = {one: tensor.to("cpu", copy=True) for one, tensor in held.items()}
        extra = [
            (module, copy.deepcopy(module.get_extra_state()))
            for module in model.modules()
            if type(module).get_extra_state is not nn.Module.get_extra_state
        ]
        places = (_Place(*where, copies[id(where[-1])]) for where in chosen)
        return cls(tuple(places), tuple(extra))

    @property
    def differing(self) -> tuple[str, ...]:
        """Names of tensors whose values differ now."""
        return tuple(place.name for place in self.places if place.differs)

    @torch.no_grad()
    def give_back(self) -> None:
        """Restore the values, and the tensors that were replaced."""
        for place in self.places:
            place.give_back()
        for module, state in self.extra:
            module.set_extra_state(copy.deepcopy(state))


def _copy(values: Tensor, into: Tensor) -> None:
    """Copy values into a tensor, also an expanded one, to whose shared numbers torch does not write."""
    strides = into.stride() if into.layout is torch.strided else ()
    if any(step == 0 and size > 1 for step, size in zip(strides, into.shape, strict=False)):
        once = tuple(slice(1) if step == 0 else slice(None) for step in strides)
        values, into = values[once], into[once]
    into.copy_(values)


def _alike(left: Tensor, right: Tensor) -> bool:
    return (left.shape, left.dtype) == (right.shape, right.dtype)


def _numbers(tensor: Tensor) -> list[Tensor]:
    """Return the numbers of a tensor: sparse ones as dense, quantised ones as integers.

    A tensor that torchao quantised consists of several: integers, or floats of 8 bits, and scales.
    """
    if is_traceable_wrapper_subclass(tensor):
        parts = [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
        return [number for part in parts for number in _numbers(part)]
    if tensor.is_quantized:
        return [tensor.int_repr()]
    dense = tensor if tensor.layout is torch.strided else tensor.to_dense()
    # Few operations support floats of 8 bits, and comparisons do not everywhere.
    small = dense.is_floating_point() and dense.element_size() == 1
    return [dense.view(torch.uint8) if small else dense]


def _same(left: Tensor, right: Tensor) -> Tensor:
    """Tell which numbers are equal, or both NaN."""
    return (left == right) | ((left != left) & (right != right))


def _copied(state: Mapping[Any, Any]) -> dict[Any, Any]:
    """Copy a state dict; what is one tensor under two names stays one."""
    memo: dict[Any, Tensor] = {}

    def own(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: own(one) for name, one in value.items()}
        if not isinstance(value, Tensor):
            return copy.deepcopy(value)
        which = (*_parts_of(value), value.shape, value.dtype)
        return memo.setdefault(which, value.detach().clone())

    return {name: own(value) for name, value in state.items()}


def _spans(values: Iterable[Any]) -> dict[torch.device, list[Span]]:
    """Return the memory ranges of tensors on each device, ascending and disjoint."""
    spans: dict[torch.device, list[Span]] = {}
    for value in values:
        if isinstance(value, Tensor) and not is_lazy(value):
            for part in _parts_of(local_part(value)):
                spans.setdefault(value.device, []).append(part)
    return {device: _merged(every) for device, every in spans.items()}


def _parts_of(tensor: Tensor) -> list[Span]:
    """Return the memory ranges of a tensor: its storage, or those of its parts."""
    if tensor.is_mkldnn:  # memory that only oneDNN knows
        return []
    if tensor.layout == torch.sparse_coo:
        parts = [tensor._indices(), tensor._values()]
    elif tensor.layout != torch.strided:
        parts = [tensor.values()]
    elif hasattr(tensor, "__tensor_flatten__"):
        parts = [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
    else:
        storage = tensor.untyped_storage()
        first, size = storage.data_ptr(), storage.nbytes()
        return [(first, first + size)] if size and first else []
    return [span for part in parts for span in _parts_of(part)]


def _merged(spans: list[Span]) -> list[Span]:
    merged: list[Span] = []
    for first, last in sorted(spans):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return merged


def _overlap(
    left: Mapping[torch.device, list[Span]], right: Mapping[torch.device, list[Span]]
) -> bool:
    # Ranges are sorted and disjoint, so that only the last one that begins before an end can overlap.
    for device in left.keys() & right.keys():
        own = left[device]
        for first, last in right[device]:
            at = bisect_right(own, (last - 1, last)) - 1
            if at >= 0 and own[at][1] > first:
                return True
    return False

"""The forward pass, watched: which layers it calls, and where in their tensors the samples are.

Samples may be in any dimension, merged with another one, or in none (a position embedding of
``arange``). Two passes of the same sample, alone and twice, tell which: a dimension that doubles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from trakstore.features.layers import MATCHERS, SEEN_THROUGH, Call, Layer

__all__ = ["FAILURES", "Axis", "Key", "Recorder", "Rule", "Shapes", "Untrusted", "find_rules"]

Key = tuple[
    tuple[str, ...], int
]  # parameters that a layer uses, and how often they were used before
Observer = Callable[[Key, Layer, Call, Tensor], Tensor]

# functions whose result has a shape that depends on the data: what is merged is not equal parts then
_BY_DATA = {torch.nonzero, Tensor.nonzero, torch.masked_select, Tensor.masked_select, torch.unique}


# what a watched model or a layer may raise where it would not by itself
FAILURES = (RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError)


class Untrusted(Exception):
    """Some parameters' gradients cannot be taken from what was recorded."""

    def __init__(self, names: Iterable[str], reason: str) -> None:
        super().__init__(reason)
        self.names, self.reason = frozenset(names), reason


class Recorder(TorchFunctionMode):
    """Shows each layer that uses one of the parameters to an observer, who may change its output.

    Parameters
    ----------
    names : mapping of id to str
        Canonical names of parameters.
    observer : callable
    watched : set of str
        Parameters of which :attr:`touched` says whether any function was given them.
    """

    def __init__(
        self, names: Mapping[int, str], observer: Observer, watched: Set[str] = frozenset()
    ) -> None:
        super().__init__()
        self._names, self._observer, self._watched = names, observer, watched
        self._count: dict[tuple[str, ...], int] = {}
        self.by_data = False
        self.touched: set[str] = set()

    def watched(self, model: Callable[..., Any]) -> Callable[..., Any]:
        """The model, watched whenever it is called; what is made of its outputs is not."""

        def call(*args: Any, **kwargs: Any) -> Any:
            with self:
                return model(*args, **kwargs)

        return call

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in SEEN_THROUGH:
            with self:
                return SEEN_THROUGH[func](*args, **kwargs)
        if self._watched:
            uses = map(Call(args, kwargs, self._names).use, Call(args, kwargs, {}).tensors())
            self.touched |= {use.name for use in uses if use} & self._watched
        if func in MATCHERS:
            call = Call(args, kwargs, self._names)
            layer = MATCHERS[func](call)
            if layer is not None:
                return self._observer(self._key(layer), layer, call, func(*args, **kwargs))
        elif func in _BY_DATA or (func is Tensor.__getitem__ and _is_mask(args[1])):
            self.by_data = True
        return func(*args, **kwargs)

    def _key(self, layer: Layer) -> Key:
        count = self._count.get(layer.names, 0)
        self._count[layer.names] = count + 1
        return layer.names, count


@dataclass(frozen=True)
class Axis:
    """Where samples are.

    Attributes
    ----------
    dim : int
        A dimension, or -1 for nowhere.
    merged : bool
        Whether samples have several entries there,
    inner : bool
        one entry of all samples after the other, instead of one sample after the other.
    """

    dim: int
    merged: bool = False
    inner: bool = False

    def front(self, tensor: Tensor, batch: int) -> Tensor | None:
        """A view of shape ``(batch, each, ...)``; None where the tensor is not of that batch."""
        if self.dim >= tensor.ndim:
            return None
        size = tensor.shape[self.dim]
        if size == batch and not self.dim:
            return tensor.unsqueeze(1)
        if size != batch and (not self.merged or size % batch):
            return None
        moved = tensor.movedim(self.dim, 0) if self.dim else tensor
        if self.inner:
            return moved.reshape(size // batch, batch, *moved.shape[1:]).transpose(0, 1)
        return moved.reshape(batch, size // batch, *moved.shape[1:])

    @classmethod
    def of(cls, once: Tensor, twice: Tensor) -> Axis | None:
        """From a tensor for a sample, and for the sample twice."""
        if once.ndim != twice.ndim:
            return None
        grown = [i for i, (a, b) in enumerate(zip(once.shape, twice.shape, strict=True)) if a != b]
        if not grown:
            return cls(-1)
        dim = grown[0]
        if len(grown) > 1 or twice.shape[dim] != 2 * once.shape[dim]:
            return None
        if once.shape[dim] == 1:
            return cls(dim)
        one, other = twice.movedim(dim, 0).chunk(2)
        return cls(dim, merged=True, inner=not torch.allclose(one, other, rtol=1e-2))


@dataclass(frozen=True)
class Rule:
    """Where samples are in a layer's inputs and output; ``free``: they are not."""

    inputs: tuple[Axis, ...]
    output: Axis
    free: bool = False

    @property
    def merged(self) -> bool:
        """Whether samples are merged with another dimension."""
        return any(axis.merged for axis in (*self.inputs, self.output))


@dataclass
class Shapes:
    """An observer that keeps tensors, and gives free layers' outputs a batch dimension.

    Attributes
    ----------
    batch : int
    free : set of Key
        Layers without samples.
    seen : dict of Key
        Inputs, then the output.
    """

    batch: int
    free: set[Key]
    seen: dict[Key, tuple[Tensor, ...]] = field(default_factory=dict)
    first: dict[Key, bool] = field(default_factory=dict)

    def __call__(self, key: Key, layer: Layer, _: Call, output: Tensor) -> Tensor:
        """See :class:`Recorder`."""
        self.seen[key] = tuple(t.detach().clone() for t in (*layer.inputs, output))
        self.first[key] = layer.samples_first
        return expanded(output, self.batch) if key in self.free else output


def expanded(tensor: Tensor, batch: int) -> Tensor:
    """A tensor without samples, repeated for each of them, without a copy."""
    if tensor.ndim and tensor.shape[0] == 1:
        return tensor.expand(batch, *tensor.shape[1:])
    return tensor.expand(batch, *tensor.shape)


def find_rules(
    forward: Callable[[Any, Observer], Recorder], once: Any, twice: Any
) -> dict[Key, Rule]:
    """Where samples are in each layer's tensors.

    Parameters
    ----------
    forward : callable
        Runs the model on a batch, watched by an observer.
    once, twice : trees of Tensor
        A batch of one sample, and of it twice.

    Raises
    ------
    Untrusted
        With the layers in which samples are nowhere that is known.
    """
    free: set[Key] = set()
    while True:
        a, b = Shapes(1, free), Shapes(2, free)
        try:
            recorders = [forward(batch, shapes) for batch, shapes in ((once, a), (twice, b))]
        except torch.OutOfMemoryError:
            raise
        except FAILURES as error:  # the model cannot have it, or is broken, which others will say
            raise Untrusted(
                {n for key in free for n in key[0]}, f"of an error ({error})"
            ) from error
        by_data = any(recorder.by_data for recorder in recorders)
        rules = {key: _rule(key, a, b) for key in a.seen}
        bad = {key for key, rule in rules.items() if rule is None or (rule.merged and by_data)}
        if bad or a.seen.keys() != b.seen.keys():
            names = {name for key in bad or (a.seen.keys() ^ b.seen.keys()) for name in key[0]}
            raise Untrusted(names, "it is not known where in their layers' tensors the samples are")
        new = next(
            (key for key, rule in rules.items() if rule and rule.free and key not in free), None
        )
        if new is None:
            return {key: rule for key, rule in rules.items() if rule}
        free.add(new)  # layers after it may have samples now


def _rule(key: Key, a: Shapes, b: Shapes) -> Rule | None:
    if key not in b.seen:
        return None
    axes = [Axis.of(x, y) for x, y in zip(a.seen[key], b.seen[key], strict=True)]
    inputs, output = axes[:-1], axes[-1]
    if output is None or any(axis is None for axis in inputs):
        return None
    known = [axis for axis in axes if axis is not None]
    nowhere = [axis.dim < 0 for axis in known]
    if any(nowhere) and not all(nowhere):
        return None
    if a.first[key] and any(axis.dim > 0 for axis in known):
        return None
    return Rule(tuple(known[:-1]), output, free=all(nowhere))


def _is_mask(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, Tensor) and part.dtype == torch.bool for part in parts)

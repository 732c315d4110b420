"""The layers that a model uses last, found by watching it compute its output once."""

from __future__ import annotations

from collections.abc import Callable
from glob import escape
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as tree

from trakstore.errors import TrakStoreError
from trakstore.features.parameters import canonical_name

__all__ = ["LastLayers", "last_layers"]

# Their weights scale what other layers compute, whatever shape they have.
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


class LastLayers(NamedTuple):
    """Layers that were chosen.

    Attributes
    ----------
    patterns : tuple of str
        Patterns of the names of their parameters, each of which matches one.
    words : str
        Names and shapes of their weights, the last one first, for messages.
    """

    patterns: tuple[str, ...]
    words: str


def last_layers(model: nn.Module, count: int, answer: Callable[[], Any]) -> LastLayers:
    """Find the layers whose weights a model uses last on the way to its output.

    A layer is a module with a trainable weight of its own of two or more dimensions: an embedding
    counts, a norm does not. Each counts where its weight is used last: entity embeddings that the
    output multiplies with are the last layer, though the model also looks up its inputs in them.

    Parameters
    ----------
    model : nn.Module
        Model, in eval mode.
    count : int
        Number of layers; all where there are fewer.
    answer : callable
        Function that computes the model's output for some sample.

    Raises
    ------
    TrakStoreError
        When there is no such layer.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 1)).eval()
    >>> last_layers(model, 1, lambda: model(torch.ones(1, 2)))
    LastLayers(patterns=('3.weight', '3.bias'), words='3 (1 x 3)')
    """
    layers = _layers(model)
    if not layers:
        raise TrakStoreError("the model has no layer with a trainable weight of two dimensions")
    uses = _Uses(set(layers))
    with torch.enable_grad(), uses:
        answer()
    # Layers that were not seen come before all others, in the order of the model.
    order = sorted(layers, key=lambda weight: uses.last.get(weight, -1), reverse=True)
    names = list(dict.fromkeys(layers[weight] for weight in order))[:count]
    modules = dict(model.named_modules())
    owned = [(name, *pair) for name in names for pair in _trainable(modules[name])]
    patterns = tuple(escape(_named(name, own)) for name, own, _ in owned)
    sizes = {name: p.shape for name, _, p in reversed(owned) if p.ndim > 1}
    words = [
        f"{canonical_name(n) or 'the model'} ({' x '.join(map(str, sizes[n]))})" for n in names
    ]
    return LastLayers(patterns, ", ".join(words))


def _layers(model: nn.Module) -> dict[int, str]:
    """Return the name of each weight's module, by the weight's id; for a tied weight, the first one."""
    layers: dict[int, str] = {}
    for name, module in model.named_modules():
        if not isinstance(module, _NORMS):
            for _, p in _trainable(module):
                if p.ndim > 1:
                    layers.setdefault(id(p), name)
    return layers


def _trainable(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return the trainable parameters of a module itself, not of its children, by name."""
    return [(own, p) for own, p in module.named_parameters(recurse=False) if p.requires_grad]


def _named(module: str, own: str) -> str:
    return canonical_name(f"{module}.{own}" if module else own)


class _Uses(TorchFunctionMode):
    """Mode that notes when each of some weights is used last.

    Functions whose result has no gradient history, such as one that returns a shape, do not count.
    """

    def __init__(self, weights: set[int]) -> None:
        super().__init__()
        self._weights, self._calls = weights, 0
        self.last: dict[int, int] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self._calls += 1
        touched = [one for one in tree.tree_leaves((args, kwargs)) if id(one) in self._weights]
        if touched and any(
            isinstance(one, Tensor) and one.requires_grad for one in tree.tree_leaves(out)
        ):
            self.last |= dict.fromkeys(map(id, touched), self._calls)
        return out

"""Which parameters gradients are taken of, under names that no wrapper changes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from trakstore.errors import TrakStoreError
from trakstore.spec import ParameterSpec

__all__ = [
    "canonical_name",
    "canonical_names",
    "own_names",
    "parameter_spec",
    "select_parameters",
    "uncompiled",
]

_WRAPPERS = re.compile(r"(^|\.)(?:(?:module|_orig_mod)(?:\.|$))+")


def canonical_name(name: str) -> str:
    """A name without what data parallelism and ``torch.compile`` put around modules.

    Examples
    --------
    >>> canonical_name("module._orig_mod.encoder.module.weight")
    'encoder.weight'
    """
    return _WRAPPERS.sub(r"\1", name)


def uncompiled(model: nn.Module) -> nn.Module:
    """The model that ``torch.compile`` was given: hooks and ``vmap`` need its own modules."""
    inner: nn.Module = getattr(model, "_orig_mod", model)
    return inner


def own_names(state: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """Weights under the names that the model has for them, whatever wrapper they were saved from."""
    own = {canonical_name(name): name for name in model.state_dict()}
    return {own.get(canonical_name(str(name)), name): value for name, value in state.items()}


def canonical_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under canonical names; two that fall together are an error."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        canonical = canonical_name(name)
        if canonical in renamed:
            raise TrakStoreError(
                f"two parameters are named {canonical!r} without 'module.' and '_orig_mod.'; "
                f"rename the module that is called 'module'"
            )
        renamed[canonical] = tensor
    return renamed


def select_parameters(
    model: nn.Module, patterns: Sequence[str] = ("*",)
) -> dict[str, nn.Parameter]:
    """The parameters that require a gradient and match a pattern, by their names in the model.

    Parameters
    ----------
    model : nn.Module
    patterns : sequence of str
        Shell-style patterns of canonical names, such as ``"layer4.*"``.

    Raises
    ------
    TrakStoreError
        When a pattern matches nothing that requires a gradient.
    """
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    canonical_names(dict(trainable))
    for pattern in patterns:
        if not any(fnmatchcase(canonical_name(name), pattern) for name in trainable):
            known = ", ".join(canonical_name(name) for name in list(trainable)[:8])
            raise TrakStoreError(
                f"no parameter that requires a gradient matches {pattern!r}; the model has "
                f"{known or 'none'}{', ...' if len(trainable) > 8 else ''}"
            )
    return {
        name: p
        for name, p in trainable.items()
        if any(fnmatchcase(canonical_name(name), pattern) for pattern in patterns)
    }


def parameter_spec(selected: dict[str, nn.Parameter], patterns: Sequence[str]) -> ParameterSpec:
    """What is stored of a selection: canonical names and shapes, in model order."""
    shapes = tuple((canonical_name(name), tuple(p.shape)) for name, p in selected.items())
    return ParameterSpec(shapes, tuple(patterns))

"""Parameters whose gradients are taken, under names that no wrapper changes."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from trakstore.errors import TrakStoreError
from trakstore.features.wording import listed
from trakstore.quantities import shown
from trakstore.spec import ParameterSpec

__all__ = [
    "as_patterns",
    "canonical_name",
    "canonical_names",
    "need_real",
    "parameter_spec",
    "select_parameters",
    "uncompiled",
]

log = logging.getLogger("trakstore")

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_WRAPPERS = re.compile(r"(^|\.)(?:(?:module|_orig_mod)(?:\.|$))+")


def canonical_name(name: str) -> str:
    """Return a name without the parts that data parallelism and ``torch.compile`` add.

    Examples
    --------
    >>> canonical_name("module._orig_mod.encoder.module.weight")
    'encoder.weight'
    """
    return _WRAPPERS.sub(r"\1", name)


def uncompiled(model: nn.Module) -> nn.Module:
    """Return the model inside a wrapper of ``torch.compile``, unless the wrapper has hooks."""
    # Only a process that has compiled something has the compiler, which takes seconds to import. The
    # class is compared because a model may have a submodule of its own that is called ``_orig_mod``.
    compiler = sys.modules.get("torch._dynamo.eval_frame")
    if compiler is None or not isinstance(model, compiler.OptimizedModule):
        return model
    hooks = (model._forward_hooks, model._forward_pre_hooks)
    own = any((*hooks, model._backward_hooks, model._backward_pre_hooks))
    return model if own else cast(nn.Module, model._orig_mod)


def canonical_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors under canonical names; raise if two have the same one."""
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


def is_pretrained_model(model: nn.Module) -> bool:
    """Tell whether a model is one of transformers, without importing the library."""
    return any(
        one.__name__ == "PreTrainedModel" and one.__module__.startswith("transformers.")
        for one in type(model).__mro__
    )


def as_patterns(patterns: str | Sequence[str]) -> tuple[str, ...]:
    """Return patterns of parameter names as a tuple; a single one may be a str.

    Examples
    --------
    >>> as_patterns("head.*"), as_patterns(["head.*", "norm.*"])
    (('head.*',), ('head.*', 'norm.*'))
    """
    chosen = (patterns,) if isinstance(patterns, str) else patterns
    if not isinstance(chosen, Sequence) or not all(isinstance(one, str) for one in chosen):
        raise TrakStoreError(
            f"parameters are shell-style patterns of names, such as ['layer4.*'], got {shown(patterns)}"
        )
    return tuple(map(str, chosen))


def select_parameters(
    model: nn.Module, patterns: str | Sequence[str] = ("*",)
) -> dict[str, nn.Parameter]:
    """Select parameters that require a gradient and match a pattern, by their names in the model.

    Parameters
    ----------
    model : nn.Module
        Model with the parameters.
    patterns : str or sequence of str
        Shell-style patterns of canonical names, such as ``"layer4.*"``. A shared parameter has the name
        that it has in the first module.

    Raises
    ------
    TrakStoreError
        When a pattern matches nothing that requires a gradient, or a parameter is complex.
    """
    patterns = as_patterns(patterns)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    canonical_names(dict(trainable))  # raises where two names fall together
    # torch lists a tied parameter once, under its first name. A pattern that matches another name of it
    # would select nothing, or less than it says: the error gives both names.
    for pattern in patterns:
        tied = _other_names(model, pattern)
        if not any(fnmatchcase(canonical_name(name), pattern) for name in trainable):
            raise TrakStoreError(
                f"no parameter that requires a gradient matches {pattern!r}; "
                f"{_instead(model, pattern, tied, list(trainable))}"
            )
        for name, first in tied.items():
            if not any(fnmatchcase(first, one) for one in patterns):
                log.warning(
                    "%r leaves out %s, which is %s under another name", pattern, name, first
                )
    selected = {
        name: p
        for name, p in trainable.items()
        if any(fnmatchcase(canonical_name(name), pattern) for pattern in patterns)
    }
    for name, p in selected.items():
        need_real(canonical_name(name), p)
    return selected


def parameter_spec(
    selected: dict[str, nn.Parameter], patterns: str | Sequence[str]
) -> ParameterSpec:
    """Describe a selection by canonical names and shapes, in model order."""
    shapes = tuple((canonical_name(name), tuple(p.shape)) for name, p in selected.items())
    return ParameterSpec(shapes, as_patterns(patterns))


def _other_names(model: nn.Module, pattern: str) -> dict[str, str]:
    """Return further names of tied parameters that a pattern matches, with the first name of each."""
    first: dict[int, str] = {}
    others: dict[str, str] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        known = first.setdefault(id(p), canonical_name(name))
        matches = fnmatchcase(canonical_name(name), pattern) and not fnmatchcase(known, pattern)
        if p.requires_grad and matches:
            others[canonical_name(name)] = known
    return others


def _instead(model: nn.Module, pattern: str, tied: Mapping[str, str], trainable: list[str]) -> str:
    """Return words on the names that there are, for a pattern that selects nothing."""
    if tied:
        name, first = next(iter(tied.items()))
        return f"{name} is tied: it is the parameter {first}; select it by that name"
    names = map(canonical_name, dict(model.named_parameters()))
    # A frozen parameter of that name is most likely the one that was meant.
    frozen = [f"{name} is frozen; " for name in names if fnmatchcase(name, pattern)]
    known = listed([canonical_name(name) for name in trainable])
    return f"{(frozen or [''])[0]}the model has {known or 'none'}"


def need_real(name: str, parameter: nn.Parameter) -> None:
    """Raise a :class:`TrakStoreError` for a complex parameter."""
    if is_lazy(parameter):
        raise TrakStoreError(f"{name} has no size yet; call the model once on a batch")
    if parameter.dtype not in _DTYPES:
        kind = str(parameter.dtype).removeprefix("torch.")
        remedy = (
            "hold it as real numbers (a parameter with a last dimension of 2, and "
            "torch.view_as_complex of it in the forward)"
            if parameter.dtype.is_complex
            else f"convert it to one of {', '.join(str(d).removeprefix('torch.') for d in _DTYPES)}"
        )
        raise TrakStoreError(
            f"the parameter {name} is {kind}, and features are of real gradients: {remedy}, or leave "
            f"it out by parameters="
        )

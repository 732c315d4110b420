"""Ordinary backward passes: the truth that engines are compared with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as tree

from trakstore.errors import TrakStoreError
from trakstore.features.graph import reached
from trakstore.features.outputs import ModelOutput

__all__ = ["gradients", "need_graph", "only"]


def gradients(scalar: Tensor, parameters: Sequence[nn.Parameter]) -> tuple[Tensor | None, ...]:
    """Gradients of a scalar by parameters, None for those that it does not depend on.

    Where a ``torch.autograd.Function`` is in the graph, by ``backward()``: it may take gradients of
    parameters that the graph does not show, as reentrant checkpoints do. Otherwise by
    ``torch.autograd.grad``, which leaves ``.grad`` and its hooks alone.
    """
    if not scalar.requires_grad:
        return (None,) * len(parameters)
    if reached([scalar.grad_fn]).python:
        with _without_gradients(parameters):
            scalar.backward()
            return tuple(parameter.grad for parameter in parameters)
    return torch.autograd.grad(scalar, list(parameters), allow_unused=True)


@contextmanager
def _without_gradients(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Parameters without their ``.grad`` and what is done after it grows, which are put back."""
    kept = [(p.grad, p._post_accumulate_grad_hooks) for p in parameters]
    try:
        for parameter in parameters:
            parameter.grad = None
            parameter._post_accumulate_grad_hooks = None  # type: ignore[assignment]
        yield
    finally:
        for parameter, (gradient, hooks) in zip(parameters, kept, strict=True):
            parameter.grad, parameter._post_accumulate_grad_hooks = gradient, hooks


@contextmanager
def only(
    parameters: Sequence[nn.Parameter], own: Mapping[str, nn.Parameter]
) -> Iterator[dict[int, str]]:
    """Gradients are on, and of a model's parameters only ``own`` require them.

    Gives the names of ``own`` by the ids of the parameters; what required gradients before does so
    again at the end.
    """
    names = {id(parameter): name for name, parameter in own.items()}
    required = [p for p in parameters if id(p) not in names and p.requires_grad]
    try:
        for parameter in required:
            parameter.requires_grad_(False)
        with torch.enable_grad():
            yield names
    finally:
        for parameter in required:
            parameter.requires_grad_(True)


def need_graph(output: ModelOutput, model: nn.Module, batch: Any) -> None:
    """Raise a :class:`TrakStoreError` if the outputs of a batch depend on no parameter at all."""
    every = [p for p in model.parameters() if p.is_floating_point() or p.is_complex()]
    asked = [parameter for parameter in every if not parameter.requires_grad]
    try:
        for parameter in asked:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            found = output(model, tree.tree_map(Tensor.clone, batch)).output
    finally:
        for parameter in asked:
            parameter.requires_grad_(False)
    if not found.requires_grad:
        raise TrakStoreError(
            "the model's outputs depend on no parameter: gradients are off somewhere in its forward "
            "(no_grad, inference_mode, detach, .data); turn them on there"
        )

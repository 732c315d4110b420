"""Ordinary backward passes, as training does them: the truth with which engines are compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as tree

from trakstore.errors import TrakStoreError
from trakstore.features.graph import reached
from trakstore.features.outputs import ModelOutput, RowOutputs
from trakstore.features.projectors.projector import as_matrix
from trakstore.features.quantised import named_without_gradients
from trakstore.features.sharding import WHOLE, Sharding, Take
from trakstore.features.wording import listed

__all__ = ["backward", "copied", "each_tensor", "need_alike", "need_graph", "only"]


def each_tensor(function: Callable[[Tensor], Tensor], batch: Any) -> Any:
    """Apply a function to each tensor of a batch; a flat batch, as most are, needs no tree walk."""
    if type(batch) in (tuple, list) and all(isinstance(one, Tensor) for one in batch):
        return type(batch)(map(function, batch))
    return tree.tree_map(function, batch)


def copied(batch: Any) -> Any:
    """Return a batch in new memory: a forward may write to its inputs (``x.div_(255)``)."""
    return each_tensor(Tensor.clone, batch)


def backward(
    model: nn.Module,
    output: ModelOutput,
    parameters: Mapping[str, nn.Parameter],
    batch: Any,
    take: Take,
    signs: Tensor | None = None,
    sharding: Sharding = WHOLE,
) -> RowOutputs:
    """Differentiate the sum of a batch's outputs by parameters, as training does.

    Parameters
    ----------
    parameters : mapping of name to Parameter
        Parameters to differentiate by; no others require gradients meanwhile.
    take : callable
        Function that is given each parameter's name and gradient, ``(1, rows, rest)``; in a model that
        is spread over ranks, this rank's part. Parameters on which the sum does not depend are left
        out.
    signs : Tensor, shape (batch,), optional
        Factors of the outputs in the sum.
    sharding : Sharding

    Returns
    -------
    RowOutputs
        All columns of the batch.
    """
    with only(sharding.groups(model), parameters):
        rows = output(model, copied(batch))
        scalar = rows.output if signs is None else rows.output * signs.to(rows.output)
        if not sharding.whole:
            sharding.backward(scalar.sum(), parameters, partial(_take_matrix, take))
        else:
            each = _gradients(scalar.sum(), list(parameters.values()))
            for name, gradient in zip(parameters, each, strict=True):
                if gradient is not None:
                    _take_matrix(take, name, gradient)
    return RowOutputs(*(column.detach() for column in rows))


def _take_matrix(take: Take, name: str, gradient: Tensor) -> None:
    dense = gradient.to_dense() if gradient.is_sparse else gradient
    take(name, dense.reshape(1, *as_matrix(tuple(dense.shape))))


def _gradients(scalar: Tensor, parameters: Sequence[nn.Parameter]) -> tuple[Tensor | None, ...]:
    """Return gradients of a scalar by parameters; None for those on which it does not depend.

    Where the graph has a ``torch.autograd.Function``, ``backward()`` computes them: such a function may
    differentiate parameters that the graph does not show, as reentrant checkpoints do. Otherwise
    ``torch.autograd.grad`` does, which leaves ``.grad`` and its hooks alone.
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
    """Remove ``.grad`` of parameters, and hooks on its accumulation; put both back at the end."""
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
    parameters: Sequence[Sequence[nn.Parameter]], own: Mapping[str, nn.Parameter]
) -> Iterator[dict[int, str]]:
    """Turn gradients on in the ``with`` block, among a model's parameters for ``own`` alone.

    Yields the names of ``own`` by the ids of the parameters. Parameters that required gradients before
    do so again at the end. ``parameters`` lists each with the tensors that passes use in its place.
    """
    names = {id(parameter): name for name, parameter in own.items()}
    others = [same for same in parameters if names.keys().isdisjoint(map(id, same))]
    required = [p for same in others for p in same if p.requires_grad]
    try:
        for parameter in required:
            parameter.requires_grad_(False)
        with torch.enable_grad():
            yield names
    finally:
        for parameter in required:
            parameter.requires_grad_(True)


def need_alike(
    model: nn.Module,
    output: ModelOutput,
    parameters: Mapping[str, nn.Parameter],
    batch: Any,
    sharding: Sharding,
) -> None:
    """Raise unless all ranks of tensor parallel have the same gradient of each parameter held whole.

    Such a gradient is counted once. If activations are divided by positions and enter a module that was
    not told so, each rank would have the gradient of its own positions alone.

    Raises
    ------
    TrakStoreError
        With the names of the parameters.
    """
    if not sharding.tensor_parallel:
        return
    norms: dict[str, float] = {}
    with only(sharding.groups(model), parameters):
        total = output(model, copied(batch)).output.sum()
        sharding.backward(
            total, parameters, lambda name, one: norms.update({name: float(one.norm())}), alike=True
        )
    first = sharding.same(norms)
    most = max(first.values(), default=0.0)

    def differs(name: str) -> bool:
        own, other = norms.get(name, 0.0), first.get(name, 0.0)
        return abs(own - other) > 1e-2 * other + 1e-5 * most

    if apart := list(filter(differs, parameters)):
        raise TrakStoreError(
            f"ranks of tensor parallel have different gradients of {listed(apart)}, which each of them "
            f"holds whole: it is given parts of the activations as if they were whole; put "
            f"SequenceParallel() into the plan for it"
        )


def need_graph(output: ModelOutput, model: nn.Module, batch: Any) -> None:
    """Raise a :class:`TrakStoreError` if the outputs of a batch depend on no parameter at all."""
    every = [p for p in model.parameters() if p.is_floating_point() or p.is_complex()]
    frozen = [parameter for parameter in every if not parameter.requires_grad]
    # Frozen parameters require gradients in this pass: an output that depends on them alone shows no
    # fault of the forward.
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        with torch.enable_grad(), named_without_gradients(model):
            differentiable = output(model, copied(batch)).output.requires_grad
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
    if not differentiable:
        raise TrakStoreError(
            "the model's outputs depend on no parameter: gradients are off somewhere in its forward "
            "(no_grad, inference_mode, detach, .data); turn them on there"
        )

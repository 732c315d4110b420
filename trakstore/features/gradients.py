"""The generic engine: per-sample gradients of any model by ``torch.func``.

Where ``vmap`` cannot do a model (recurrent layers, choices that depend on the data), or does it wrong,
one sample is done after the other by ordinary backward passes, with one line in the log.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as tree

from trakstore.features.outputs import ModelOutput, RowOutputs
from trakstore.features.parameters import canonical_name
from trakstore.features.plain import gradients, only
from trakstore.features.projectors import Projector
from trakstore.planning import ranges

__all__ = ["FAILURES", "FeatureRows", "GenericEngine", "batch_size", "copied", "cut", "first_leaf"]

log = logging.getLogger("trakstore")

_GRADIENT_BYTES = 256 * 2**20  # of full gradients held at once

# what a model may raise under vmap, or while it is watched, and not by itself
FAILURES = (RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError)


class FeatureRows(NamedTuple):
    """Features of a batch, ``(batch, dim)`` float32, and the outputs of its samples."""

    features: Tensor
    outputs: RowOutputs


class GenericEngine:
    """Per-sample gradients of parameters, projected.

    Parameters
    ----------
    model : nn.Module
        In eval mode, on the device of the batches.
    output : ModelOutput
        What is differentiated.
    parameters : dict of name to Parameter
        The selected ones, under the model's own names.
    projector : Projector
        Knows them under canonical names.
    tolerance : float
        Relative difference of features that rounding explains.

    Attributes
    ----------
    first : tree of Tensor, optional
        The samples by which it is decided whether ``vmap`` does this model; those of the first call
        otherwise. The same for every worker, so that all of them decide alike.
    """

    def __init__(
        self,
        model: nn.Module,
        output: ModelOutput,
        parameters: dict[str, nn.Parameter],
        projector: Projector,
        tolerance: float = 1e-3,
    ) -> None:
        self._model, self._output, self._projector = model, output, projector
        self._asked = _Asked(model, output)
        self._parameters = {canonical_name(name): p for name, p in parameters.items()}
        self._own_names = {canonical_name(name): name for name in parameters}
        self._all = tuple(model.parameters())
        self.tolerance = tolerance
        self.first: Any = None
        self._vmap_works: bool | None = None

    def rows(self, batch: Any, names: Iterable[str] | None = None) -> FeatureRows:
        """Features and outputs of a batch, from the gradients of some parameters, or of all."""
        if self._vmap_works is None:
            self._prepare(cut(batch, 0, 2) if self.first is None else self.first)
        chosen = list(self._parameters if names is None else names)
        size, most = batch_size(batch), self._at_once(chosen)
        parts = [self._part(cut(batch, lo, hi), chosen) for lo, hi in ranges(size, most)]
        features = torch.cat([part.features for part in parts])
        columns = zip(*(part.outputs for part in parts), strict=True)
        return FeatureRows(features, RowOutputs(*(torch.cat(column) for column in columns)))

    def _prepare(self, first: Any) -> None:
        """Decide whether ``vmap`` does this model."""
        names = list(self._parameters)
        true = self._one_by_one(first, names)
        reason = self._unfit()
        if not reason:
            try:
                rows = self._by_vmap(first, names)
            except torch.OutOfMemoryError:
                raise
            except FAILURES as error:
                reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            else:
                apart = (rows.features - true.features).norm()
                if bool(apart > self.tolerance * true.features.norm()):
                    reason = "its gradients are not those of backward()"
        self._vmap_works = not reason
        if reason:
            log.warning(
                "per-sample gradients one by one, since vmap cannot do this model (%s)", reason
            )

    def _unfit(self) -> str:
        if any(parameter._backward_hooks for parameter in self._parameters.values()):
            return "a parameter has a gradient hook"
        return ""

    def _at_once(self, names: list[str]) -> int:
        row_bytes = 4 * sum(self._parameters[name].numel() for name in names)
        return max(1, _GRADIENT_BYTES // max(1, row_bytes))

    def _part(self, batch: Any, names: list[str]) -> FeatureRows:
        if not self._vmap_works:
            return self._one_by_one(batch, names)
        try:
            return self._by_vmap(batch, names)
        except torch.OutOfMemoryError:
            raise
        except FAILURES:  # a fault of the model's own comes up again
            return self._one_by_one(batch, names)

    def _by_vmap(self, batch: Any, names: list[str]) -> FeatureRows:
        own = {self._own_names[name]: self._parameters[name].detach() for name in names}
        gradient = grad(self._asked.scalar, has_aux=True)
        # no gradients of others, and the attention that vmap has a rule for
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            # where torch loops over samples by itself, as in an LSTM: slower, and right
            warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
            found, outputs = vmap(gradient, in_dims=(None, 0))(own, copied(batch))
        named = {canonical_name(name): gradient for name, gradient in found.items()}
        return FeatureRows(self._projector.project(named), outputs)

    def _one_by_one(self, batch: Any, names: list[str]) -> FeatureRows:
        own = {name: self._parameters[name] for name in names}
        size = batch_size(batch)
        first = tree.tree_leaves(batch)[0]
        features = torch.zeros(size, self._projector.dim, dtype=torch.float32, device=first.device)
        outputs = []
        with only(self._all, own):
            for i in range(size):
                rows = self._output(self._model, copied(cut(batch, i, i + 1)))
                outputs.append([column.detach() for column in rows])
                found = gradients(rows.output.sum(), list(own.values()))
                for name, gradient in zip(names, found, strict=True):
                    if gradient is not None:
                        tile = _dense(gradient).reshape(1, *self._projector.matrices[name])
                        self._projector.add(features[i : i + 1], name, tile)
        columns = zip(*outputs, strict=True)
        return FeatureRows(features, RowOutputs(*(torch.cat(column) for column in columns)))


class _Asked(nn.Module):
    """A model with its output, as one module: so that all of it is called with other weights."""

    def __init__(self, model: nn.Module, output: ModelOutput) -> None:
        super().__init__()
        self.model, self.output = model, output

    def forward(self, batch: Any) -> RowOutputs:
        return self.output(self.model, batch)

    def scalar(self, parameters: dict[str, Tensor], sample: Any) -> tuple[Tensor, RowOutputs]:
        """Output of one sample with these parameters, and all its columns."""
        batch = tree.tree_map(lambda tensor: tensor.unsqueeze(0), sample)
        named = {f"model.{name}": parameter for name, parameter in parameters.items()}
        rows = functional_call(self, named, (batch,))
        return rows.output[0], RowOutputs(*(column[0].detach() for column in rows))


def _dense(gradient: Tensor) -> Tensor:
    return gradient.to_dense() if gradient.is_sparse else gradient


def batch_size(batch: Any) -> int:
    """Number of samples of a batch."""
    return int(first_leaf(batch).shape[0])


def first_leaf(batch: Any) -> Tensor:
    """The first tensor of a batch."""
    first = batch[0] if isinstance(batch, tuple) and batch else None
    found: Tensor = first if isinstance(first, Tensor) else tree.tree_leaves(batch)[0]
    return found


def copied(batch: Any) -> Any:
    """The samples in memory of their own: a forward may write to what it is given (``x.div_(255)``)."""
    return tree.tree_map(Tensor.clone, batch)


def cut(batch: Any, start: int, stop: int) -> Any:
    """Some samples of a batch, one after another."""
    return tree.tree_map(lambda tensor: tensor[start:stop], batch)

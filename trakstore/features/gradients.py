"""The generic engine: per-sample gradients of any model by ``torch.func``.

Where ``vmap`` has no rule for an operation (recurrent layers, for one), one sample is done after the
other, with one line in the log.
"""

from __future__ import annotations

import logging
import warnings
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as tree

from trakstore.features.outputs import ModelOutput, RowOutputs
from trakstore.features.parameters import canonical_name
from trakstore.features.projectors import Projector

__all__ = ["FeatureRows", "GenericEngine"]

log = logging.getLogger("trakstore")

_GRADIENT_BYTES = 256 * 2**20  # of full gradients held at once


class FeatureRows(NamedTuple):
    """Features of a batch, ``(batch, dim)`` float32, and the outputs of its samples."""

    features: Tensor
    outputs: RowOutputs


class GenericEngine:
    """Per-sample gradients of the selected parameters, projected.

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
    """

    def __init__(
        self,
        model: nn.Module,
        output: ModelOutput,
        parameters: dict[str, nn.Parameter],
        projector: Projector,
    ) -> None:
        self._model, self._output, self._projector = model, output, projector
        self._parameters = {name: p.detach() for name, p in parameters.items()}
        row_bytes = 4 * sum(p.numel() for p in parameters.values())
        self._at_once = max(1, _GRADIENT_BYTES // row_bytes)
        self._vmap_works: bool | None = None

    def rows(self, batch: Any) -> FeatureRows:
        """Features and outputs of a batch."""
        size = len(tree.tree_leaves(batch)[0])
        parts = []
        for start in range(0, size, self._at_once):
            cut = partial(_rows, start=start, stop=start + self._at_once)
            gradients, outputs = self._gradients(tree.tree_map(cut, batch))
            named = {canonical_name(name): g for name, g in gradients.items()}
            parts.append(FeatureRows(self._projector.project(named), outputs))
        features = torch.cat([part.features for part in parts])
        columns = zip(*(part.outputs for part in parts), strict=True)
        return FeatureRows(features, RowOutputs(*(torch.cat(column) for column in columns)))

    def _gradients(self, batch: Any) -> tuple[dict[str, Tensor], RowOutputs]:
        if self._vmap_works is None:
            return self._first_gradients(batch)
        return (self._by_vmap if self._vmap_works else self._one_by_one)(batch)

    def _first_gradients(self, batch: Any) -> tuple[dict[str, Tensor], RowOutputs]:
        try:
            result = self._by_vmap(batch)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            result = self._one_by_one(batch)  # a fault of the model's own comes up here again
            log.warning(
                "per-sample gradients one by one, since vmap cannot do this model (%s)",
                str(error).splitlines()[0][:200],
            )
            self._vmap_works = False
            return result
        self._vmap_works = True
        return result

    def _by_vmap(self, batch: Any) -> tuple[dict[str, Tensor], RowOutputs]:
        gradient = grad(self._scalar, has_aux=True)
        # no gradients of others, and the attention that vmap has a rule for
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            # where torch loops over samples by itself, as in an LSTM: slower, and right
            warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
            gradients, outputs = vmap(gradient, in_dims=(None, 0))(self._parameters, batch)
        return gradients, outputs

    def _one_by_one(self, batch: Any) -> tuple[dict[str, Tensor], RowOutputs]:
        size = len(tree.tree_leaves(batch)[0])
        results = []
        for i in range(size):
            leaves = {n: p.clone().requires_grad_() for n, p in self._parameters.items()}
            scalar, outputs = self._scalar(leaves, tree.tree_map(lambda t, i=i: t[i], batch))
            gradients = torch.autograd.grad(
                scalar, list(leaves.values()), allow_unused=True, materialize_grads=True
            )
            results.append((gradients, [column.detach() for column in outputs]))
        of_samples, outputs_of_samples = zip(*results, strict=True)
        stacked = [torch.stack(one) for one in zip(*of_samples, strict=True)]
        columns = [torch.stack(column) for column in zip(*outputs_of_samples, strict=True)]
        return dict(zip(self._parameters, stacked, strict=True)), RowOutputs(*columns)

    def _scalar(self, parameters: dict[str, Tensor], sample: Any) -> tuple[Tensor, RowOutputs]:
        batch = tree.tree_map(lambda tensor: tensor.unsqueeze(0), sample)
        rows = self._output(partial(_call, self._model, parameters), batch)
        return rows.output[0], RowOutputs(*(column[0].detach() for column in rows))


def _call(model: nn.Module, parameters: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
    return functional_call(model, parameters, args, kwargs)


def _rows(tensor: Tensor, start: int, stop: int) -> Tensor:
    return tensor[start:stop]

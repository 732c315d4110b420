"""The generic engine: per-sample gradients of any model by ``torch.func``.

Where ``vmap`` fails on a model (recurrent layers, choices that depend on the data), or gives wrong
gradients, samples are computed one after the other by ordinary backward passes, with one line in the
log.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as tree

from trakstore.features.exchanged import exchanged
from trakstore.features.heap import keep_freed_memory
from trakstore.features.outputs import ModelOutput, RowOutputs
from trakstore.features.parameters import canonical_name
from trakstore.features.plain import backward, copied, each_tensor
from trakstore.features.projectors import Projector, Sliced
from trakstore.features.sharding import WHOLE, Sharding, Take
from trakstore.features.wording import first_sentence
from trakstore.planning import ranges

__all__ = ["FAILURES", "FeatureRows", "GenericEngine", "batch_size", "cut", "joined", "no_features"]

log = logging.getLogger("trakstore")

_GRADIENT_BYTES = 256 * 2**20  # of full gradients held at once

# Errors that a model may raise under vmap, or while it is watched, though it works by itself. Torch's
# out-of-memory error is one of them: it is raised on, to a caller who can take fewer samples at once.
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
        The scalar that is differentiated.
    parameters : dict of name to Parameter
        The selected parameters, under the model's own names.
    projector : Projector
        Projector for these parameters, under canonical names.
    sharding : Sharding
        Spread of the model over ranks.

    Attributes
    ----------
    tolerance : float
        Relative difference of features that rounding explains.
    first : tree of Tensor, optional
        Samples that decide whether ``vmap`` works for this model; those of the first call otherwise.
        They are the same for every worker, so that all of them decide alike.
    """

    def __init__(
        self,
        model: nn.Module,
        output: ModelOutput,
        parameters: dict[str, nn.Parameter],
        projector: Projector,
        sharding: Sharding = WHOLE,
    ) -> None:
        keep_freed_memory()
        self._model, self._output, self.projector = model, output, projector
        self._whole = _WholeModel(model, output)
        self._sharding = sharding
        seen = sharding.seen(parameters)
        self._parameters = {canonical_name(name): p for name, p in seen.items()}
        self._spans = sharding.spans(self._parameters)
        if self._spans:
            self.projector = Sliced(projector, self._spans)
        self.tolerance = 1e-3
        self.first: Any = None
        self._vmap_works: bool | None = None

    @property
    def whole(self) -> bool:
        """Tell whether this process has all of the model."""
        return self._sharding.whole

    @property
    def tensor_parallel(self) -> bool:
        """Tell whether ranks compute the same samples together."""
        return self._sharding.tensor_parallel

    @property
    def one_by_one(self) -> bool:
        """Tell whether the generic engine does without ``vmap``; may be set to True, for good."""
        return self._vmap_works is False

    @one_by_one.setter
    def one_by_one(self, value: bool) -> None:
        self._vmap_works = False if value else self._vmap_works

    def rows(self, batch: Any) -> FeatureRows:
        """Compute features and outputs of a batch."""
        return self.generic_rows(batch)

    def generic_rows(self, batch: Any, names: Iterable[str] | None = None) -> FeatureRows:
        """Compute them from the gradients of some parameters, or of all, by ``torch.func``."""
        if self._vmap_works is None:
            self._try_vmap(cut(batch, 0, 2) if self.first is None else self.first)
        chosen = list(self._parameters if names is None else names)
        # Each sample has a whole gradient of all these parameters: only some samples fit at once.
        size, most = batch_size(batch), self._at_once(chosen)
        parts = [self._part(cut(batch, lo, hi), chosen) for lo, hi in ranges(size, most)]
        features = self._sharding.total(torch.cat([part.features for part in parts]))
        return FeatureRows(features, joined([part.outputs for part in parts]))

    def run_as_training(self, batch: Any) -> None:
        """Run forward and backward on a batch, and nothing else."""
        if not self._sharding.whole:
            self._backward(list(self._parameters), batch, lambda *_: None)
            return
        total = self._output(self._model, copied(batch)).output.sum()
        if total.requires_grad:
            torch.autograd.grad(total, list(self._parameters.values()), allow_unused=True)

    def _try_vmap(self, first: Any) -> None:
        """Decide whether ``vmap`` works for this model."""
        reason = self._unfit_for_vmap(first)
        self._vmap_works = not reason
        if reason:
            log.warning(
                "per-sample gradients one by one, since vmap cannot do this model (%s)", reason
            )

    def _unfit_for_vmap(self, first: Any) -> str:
        """Return why ``vmap`` cannot compute this model; an empty text where it can."""
        if not self._sharding.whole:
            return "it is spread over ranks"
        names = list(self._parameters)
        true = self._one_by_one(first, names).features
        if any(parameter._backward_hooks for parameter in self._parameters.values()):
            return "a parameter has a gradient hook"
        try:
            apart = (self._by_vmap(first, names).features - true).norm()
        except torch.OutOfMemoryError:
            raise
        except FAILURES as error:
            return first_sentence(error)
        wrong = bool(apart > self.tolerance * true.norm())
        return "its gradients are not those of backward()" if wrong else ""

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
        except FAILURES:  # a fault of the model itself is raised again
            return self._one_by_one(batch, names)

    def _by_vmap(self, batch: Any, names: list[str]) -> FeatureRows:
        own = {name: self._parameters[name].detach() for name in names}
        places = {name: id(self._parameters[name]) for name in names}
        gradient = grad(partial(self._whole.scalar, places), has_aux=True)
        # Other parameters need no gradients. Of torch's attention kernels, vmap can do this one only.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            # Where torch loops over samples by itself, as in an LSTM, the result is right, only slower.
            warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
            each, outputs = vmap(gradient, in_dims=(None, 0))(own, copied(batch))
        home = _first_leaf(batch).device
        named = {name: gradient.to(home) for name, gradient in each.items()}
        return FeatureRows(self.projector.project(named), outputs)

    def _one_by_one(self, batch: Any, names: list[str]) -> FeatureRows:
        features = no_features(batch, self.projector.dim)
        outputs = [
            self._backward(
                names, cut(batch, i, i + 1), partial(self.projector.add, features[i : i + 1])
            )
            for i in range(len(features))
        ]
        return FeatureRows(features, joined(outputs))

    def _backward(self, names: list[str], batch: Any, take: Take) -> RowOutputs:
        own = {name: self._parameters[name] for name in names}
        home = _first_leaf(batch).device
        at_home: Take = lambda name, tile: take(name, tile.to(home))  # noqa: E731
        return backward(self._model, self._output, own, batch, at_home, sharding=self._sharding)


class _WholeModel(nn.Module):
    """A model with its output, as one module, so that all of it can be called with other weights."""

    def __init__(self, model: nn.Module, output: ModelOutput) -> None:
        super().__init__()
        self.model, self.output = model, output

    def forward(self, batch: Any) -> RowOutputs:
        return self.output(self.model, batch)

    def scalar(
        self, places: Mapping[str, int], parameters: dict[str, Tensor], sample: Any
    ) -> tuple[Tensor, RowOutputs]:
        """Return the output of one sample with these parameters, and all its columns.

        ``places`` are the ids of the model's own parameters of these names.
        """
        batch = tree.tree_map(lambda tensor: tensor.unsqueeze(0), sample)
        with exchanged(self, {places[name]: one for name, one in parameters.items()}):
            rows = self(batch)
        return rows.output[0], RowOutputs(*(column[0].detach() for column in rows))


def joined(parts: list[RowOutputs]) -> RowOutputs:
    """Return the outputs of a batch from those of its parts, in order."""
    return RowOutputs(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def batch_size(batch: Any) -> int:
    """Return the number of samples of a batch."""
    return int(_first_leaf(batch).shape[0])


def no_features(batch: Any, dim: int) -> Tensor:
    """Return zeros ``(batch, dim)``, float32, where the batch is."""
    first = _first_leaf(batch)
    return torch.zeros(first.shape[0], dim, dtype=torch.float32, device=first.device)


def _first_leaf(batch: Any) -> Tensor:
    # Most batches are tuples, whose first tensor is found without a walk through the tree.
    first = batch[0] if isinstance(batch, tuple) and batch else None
    leaf: Tensor = first if isinstance(first, Tensor) else tree.tree_leaves(batch)[0]
    return leaf


def cut(batch: Any, start: int, stop: int) -> Any:
    """Return some samples of a batch, one after another."""
    return each_tensor(lambda tensor: tensor[start:stop], batch)

"""The factorised engine: per-sample gradients from activations and output gradients.

One forward pass watched by :class:`~trakstore.features.recording.Recorder`, and one backward pass
that stops at the first layers and never computes a gradient of a weight. As soon as a layer's output
gradient is there, the layer's part of the features is added, and both factors are dropped.

What was recorded is not trusted: versions of activations are compared when they are used, and the first
samples are compared with ordinary backward passes. Parameters that are not seen, or wrong, go through
the generic engine in the same call, so the features are the same for any model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils import _pytree as tree

from trakstore.features.gradients import FeatureRows, GenericEngine
from trakstore.features.layers import Call, Layer
from trakstore.features.outputs import ModelOutput, RowOutputs
from trakstore.features.parameters import canonical_name
from trakstore.features.projectors import Projector
from trakstore.features.recording import (
    FAILURES,
    Axis,
    Key,
    Recorder,
    Rule,
    Untrusted,
    expanded,
    find_rules,
)
from trakstore.features.selfcheck import Samples, Truth, disagreeing

__all__ = ["FactorisedEngine"]

log = logging.getLogger("trakstore")

OutOf = Callable[[str], Tensor]  # where a parameter's projection is added


class FactorisedEngine:
    """Per-sample gradients of the selected parameters, projected; see :class:`GenericEngine`.

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
        self._parameters = parameters
        self._canonical = {canonical_name(name): p for name, p in parameters.items()}
        self._names = {canonical_name(name) for name in parameters}
        self._all_parameters = tuple(self._model.parameters())
        self._rules: dict[Key, Rule] | None = None
        self._unused: frozenset[str] = frozenset()
        self._generic: dict[frozenset[str], GenericEngine] = {}

    @property
    def generic_parameters(self) -> tuple[str, ...]:
        """Canonical names of the parameters that go through the generic engine, in model order."""
        return tuple(name for name in self._canonical if name not in self._names)

    def rows(self, batch: Any) -> FeatureRows:
        """Features and outputs of a batch; the first call checks itself on its first two samples."""
        if self._rules is None:
            self._prepare(batch)
        if not self._names:
            return self._generic_rows(batch, self._all())
        try:
            rows = self._rows(batch)
        except Untrusted as doubt:
            log.warning("a batch goes through the generic engine, since %s", doubt.reason)
            return self._generic_rows(batch, self._all())
        if rest := self.generic_parameters:
            return rows._replace(features=rows.features + self._generic_rows(batch, rest).features)
        return rows

    def _all(self) -> tuple[str, ...]:
        return tuple(self._canonical)

    def _generic_rows(self, batch: Any, names: tuple[str, ...]) -> FeatureRows:
        which = frozenset(names)
        if which not in self._generic:
            own = {n: p for n, p in self._parameters.items() if canonical_name(n) in which}
            self._generic[which] = GenericEngine(self._model, self._output, own, self._projector)
        return self._generic[which].rows(batch)

    def _rows(self, batch: Any) -> FeatureRows:
        out = _zeros(batch, self._projector.dim)
        outputs = self._accumulate(batch, self._projector, lambda _: out)
        return FeatureRows(out, outputs)

    def _accumulate(self, batch: Any, projector: Projector, out_of: OutOf) -> RowOutputs:
        """Add the projections of all known layers' parameters where ``out_of`` says."""
        size = len(tree.tree_leaves(batch)[0])
        tape = _Tape(size, self._rules or {}, projector, out_of)
        with _only(self._all_parameters, self._own()) as names:
            recorder = Recorder(names, tape, self._unused)
            rows = self._output(recorder.watched(self._model), batch)
            if recorder.touched:
                raise Untrusted(recorder.touched, "a layer was not used in the first samples")
            if recorder.by_data and tape.merged:
                raise Untrusted(self._names, "a shape depends on the data where samples are merged")
            tape.backward(rows.output.sum())
        return RowOutputs(*(column.detach() for column in rows))

    def _own(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self._canonical.items() if name in self._names}

    def _prepare(self, batch: Any) -> None:
        """Find rules, and send to the generic engine what is unknown or found wrong."""
        size = min(2, len(tree.tree_leaves(batch)[0]))
        first = tree.tree_map(lambda t: t[:size], batch)
        truth: Truth | None = None
        while True:
            try:
                self._find_rules(first)
                truth = truth or Truth.of(
                    Samples(self._model, self._output, self._canonical, first)
                )
                wrong: Set[str] = self._wrong(first, truth)
                reason = "they disagree with an ordinary backward pass"
            except Untrusted as doubt:
                wrong, reason = doubt.names & self._names or set(self._names), doubt.reason
            if not wrong:
                return
            self._exclude(wrong, reason)

    def _exclude(self, wrong: Set[str], reason: str) -> None:
        self._names -= wrong
        names = ", ".join(sorted(wrong)[:8]) + (", ..." if len(wrong) > 8 else "")
        log.info(
            "%d parameters go through the generic engine, since %s: %s", len(wrong), reason, names
        )

    def _find_rules(self, first: Any) -> None:
        once = tree.tree_map(lambda t: t[:1], first)
        twice = tree.tree_map(lambda t: torch.cat([t[:1], t[:1]]), first)

        touched: set[str] = set()

        def forward(batch: Any, observer: Any) -> Recorder:
            with _only(self._all_parameters, self._own()) as names:
                recorder = Recorder(names, observer, frozenset(self._names))
                self._output(recorder.watched(self._model), batch)
            touched.update(recorder.touched)
            return recorder

        self._rules = find_rules(forward, once, twice)
        unseen = self._names - {name for names, _ in self._rules for name in names}
        self._unused = frozenset(unseen - touched)
        if unseen & touched:
            raise Untrusted(unseen & touched, "their layers are not known")

    def _wrong(self, first: Any, truth: Truth) -> set[str]:
        """Parameters whose sketches disagree with the truth; all where only their sum does."""
        sketches: dict[str, Tensor] = {}

        def sketch_of(name: str) -> Tensor:
            return sketches.setdefault(name, _zeros(first, truth.checker.dim))

        try:
            self._accumulate(first, truth.checker, sketch_of)
            wrong = disagreeing(truth, sketches, self._names)
            if wrong or not self._names:
                return wrong
            rows = self._rows(first)
        except torch.OutOfMemoryError:
            raise
        except FAILURES as error:
            raise Untrusted(self._names, f"of an error ({error})") from error
        right = truth.projects_to(rows.features, self._projector, self._names)
        return set() if right else set(self._names)


@dataclass
class _Tape:
    """An observer that adds each layer's projection as soon as its output gradient is there."""

    batch: int
    rules: dict[Key, Rule]
    projector: Projector
    out_of: OutOf
    first: list[GradientEdge] = field(default_factory=list)
    merged: bool = False

    def __call__(self, key: Key, layer: Layer, call: Call, output: Tensor) -> Tensor:
        """See :class:`~trakstore.features.recording.Recorder`."""
        rule = self._rule(key)
        if rule.free:
            output = expanded(output, self.batch)
        elif rule.output.front(output, self.batch) is None:
            raise Untrusted(key[0], "a tensor has another shape than in the first samples")
        if not output.requires_grad:
            return output
        self.merged |= rule.merged
        base = output if rule.free else _unchanged(output)
        versions = [tensor._version for tensor in layer.inputs]
        inputs = [tensor.detach() for tensor in layer.inputs]
        arrived = partial(self._arrived, layer, rule, inputs, versions, output.shape)
        base.register_hook(arrived)
        if not any(tensor.requires_grad for tensor in call.tensors() if not call.use(tensor)):
            self.first.append(get_gradient_edge(base))
        return output

    def _rule(self, key: Key) -> Rule:
        if key in self.rules:
            return self.rules[key]
        raise Untrusted(key[0], "a layer was not used in the first samples")

    def _arrived(
        self,
        layer: Layer,
        rule: Rule,
        inputs: list[Tensor],
        versions: list[int],
        shape: torch.Size,
        gradient: Tensor,
    ) -> None:
        if [tensor._version for tensor in inputs] != versions:
            raise Untrusted(layer.names, "an activation was changed in place")
        gradient = gradient.reshape(shape)
        if rule.free:
            gradient = gradient.unsqueeze(1)
            ready = tuple(expanded(tensor, self.batch).unsqueeze(1) for tensor in inputs)
        else:
            gradient = self._front(gradient, rule.output)
            ready = tuple(map(self._front, inputs, rule.inputs))
        try:
            for piece in layer.pieces(ready, gradient):
                self.projector.add_piece(self.out_of(piece.name), piece)
        except torch.OutOfMemoryError:
            raise
        except FAILURES as error:
            raise Untrusted(layer.names, f"their layer fails ({error})") from error

    def _front(self, tensor: Tensor, axis: Axis) -> Tensor:
        front = axis.front(tensor, self.batch)
        if front is None:
            raise Untrusted((), "a tensor has another shape than in the first samples")
        return front

    def backward(self, total: Tensor) -> None:
        """From the outputs down to the first layers."""
        if self.first and total.requires_grad:
            torch.autograd.grad(total, self.first, allow_unused=True)


def _unchanged(output: Tensor) -> Tensor:
    """What an output is a view of, whose gradient is the output's even if that is changed in place."""
    base = output._base
    same = base is not None and base.grad_fn is not None and base.numel() == output.numel()
    return base if base is not None and same else output


@contextmanager
def _only(
    parameters: tuple[nn.Parameter, ...], own: dict[str, nn.Parameter]
) -> Iterator[dict[int, str]]:
    """Of a model's parameters only ``own`` require gradients; gives their names by id."""
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


def _zeros(batch: Any, dim: int) -> Tensor:
    first = tree.tree_leaves(batch)[0]
    return torch.zeros(len(first), dim, dtype=torch.float32, device=first.device)

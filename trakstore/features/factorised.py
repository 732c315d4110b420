"""The factorised engine: per-sample gradients from activations and output gradients.

One forward pass watched by :class:`~trakstore.features.recording.Recorder`, and one backward pass
that stops at the first layers and never computes a gradient of a weight. As soon as a layer's output
gradient is there, the layer's part of the features is added, and both factors are dropped.

A layer is only cut into samples where their place was followed through every function of the pass; a
parameter that autograd's graph reaches by another way than through a known layer, in any batch, goes
through the generic engine in that batch. And the first samples are compared with ordinary backward
passes: parameters that are not seen, or wrong there, go through the generic engine always. So the
features are the same for any model.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Set
from contextlib import closing
from typing import Any

import torch
from torch import Tensor, nn

from trakstore.features.axes import Following
from trakstore.features.constants import Constants, find_constants
from trakstore.features.gradients import (
    FAILURES,
    FeatureRows,
    GenericEngine,
    batch_size,
    copied,
    cut,
    first_leaf,
)
from trakstore.features.graph import reached
from trakstore.features.outputs import ModelOutput, RowOutputs
from trakstore.features.parameters import canonical_name
from trakstore.features.plain import need_graph, only
from trakstore.features.projectors import Projector
from trakstore.features.recording import Recorder, Untrusted
from trakstore.features.selfcheck import Samples, Truth, disagreeing
from trakstore.features.tape import OutOf, Tape

__all__ = ["FactorisedEngine"]

log = logging.getLogger("trakstore")

_UNPLACED = "it is not certain where in their layers' tensors the samples are"
_UNKNOWN = "their layers are not known"
_MISREAD = "the model uses sizes or dimensions of what they give for all samples"


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

    Attributes
    ----------
    autocast : bool
        Whether the model turns on autocast by itself, known after the first call.
    """

    def __init__(
        self,
        model: nn.Module,
        output: ModelOutput,
        parameters: dict[str, nn.Parameter],
        projector: Projector,
    ) -> None:
        self._model, self._output, self._projector = model, output, projector
        self._canonical = {canonical_name(name): p for name, p in parameters.items()}
        self._names = {n for n, p in self._canonical.items() if not p._backward_hooks}
        self._all_parameters = tuple(model.parameters())
        self._kept = frozenset(id(one) for one in (*self._all_parameters, *model.buffers()))
        self._generic = GenericEngine(model, output, parameters, projector)
        self._constants: Constants = {}
        self._truth: Truth | None = None
        self._told: set[str] = set()
        self.autocast = False

    @property
    def generic_parameters(self) -> tuple[str, ...]:
        """Canonical names of the parameters that go through the generic engine, in model order."""
        return tuple(name for name in self._canonical if name not in self._names)

    @property
    def tolerance(self) -> float:
        """Relative difference of features that rounding explains; known after the first call."""
        return 1e-3 if self._truth is None else self._truth.tolerance

    def rows(self, batch: Any) -> FeatureRows:
        """Features and outputs of a batch; the first call checks itself on its first two samples."""
        if self._truth is None:
            self._prepare(cut(batch, 0, 2))
        doubtful: frozenset[str] = frozenset()
        while self._names - doubtful:
            try:
                rows, more, mixed = self._rows(batch, doubtful)
            except torch.OutOfMemoryError:
                raise
            except Untrusted as doubt:
                doubtful |= self._doubted(doubt)
            except FAILURES as error:  # a fault of the model's own comes up in the other engine
                self._say(self._names, f"of an error ({_line(error)})")
                doubtful = frozenset(self._names)
            else:
                return self._completed(batch, rows, more, mixed)
        return self.generic_rows(batch)

    def generic_rows(self, batch: Any) -> FeatureRows:
        """The same by the generic engine alone."""
        return self._generic.rows(batch)

    def samples(self, batch: Any) -> Samples:
        """A batch for ordinary backward passes of the selected parameters."""
        return Samples(self._model, self._output, self._canonical, batch)

    @property
    def gradient_bytes(self) -> int:
        """Bytes of one gradient of the selected parameters."""
        return sum(p.numel() * p.element_size() for p in self._canonical.values())

    @property
    def projector(self) -> Projector:
        """The projector of the features."""
        return self._projector

    def disagreeing(self, batch: Any) -> tuple[str, ...]:
        """Parameters whose gradients of these samples are not those of ordinary backward passes."""
        truth = Truth.of(self.samples(batch))
        try:
            wrong = self._wrong(batch, truth)
        except (Untrusted, *FAILURES):
            wrong = set(self._names)
        return tuple(name for name in self._canonical if name in wrong)

    def _completed(
        self, batch: Any, rows: FeatureRows, doubtful: Set[str], mixed: bool
    ) -> FeatureRows:
        """Features of known layers, with those of all other parameters.

        Where samples see one another in this batch, all are those of each sample alone.
        """
        rest = [n for n in self._canonical if n not in self._names or n in doubtful]
        if rest:
            others = self._generic.rows(batch, rest)
            if self._alike(rows.outputs, others.outputs):
                return rows._replace(features=rows.features + others.features)
        elif not mixed or self._alike(rows.outputs, self._of_halves(batch)):
            return rows
        self._say(self._canonical, "samples have other outputs together than apart")
        return self.generic_rows(batch)

    def _alike(self, outputs: RowOutputs, others: RowOutputs) -> bool:
        """Whether outputs of the same samples are equal, but for rounding of the largest."""
        if math.isnan(self.tolerance):
            return True  # the first samples are not finite, which is refused where rows are stored
        for one, other in zip(outputs, others, strict=True):
            scale = max(1.0, float(other.detach().abs().nan_to_num(0, 0, 0).max()))
            near = self.tolerance * scale
            if not torch.allclose(one.to(other), other, self.tolerance, near, equal_nan=True):
                return False
        return True

    def _of_halves(self, batch: Any) -> RowOutputs:
        """Outputs of both halves of a batch, each by itself."""
        size = batch_size(batch)
        with torch.no_grad():
            halves = [
                self._output(self._model, copied(cut(batch, *part)))
                for part in ((0, size // 2), (size // 2, size))
                if part[0] < part[1]
            ]
        return RowOutputs(*(torch.cat(column) for column in zip(*halves, strict=True)))

    def _doubted(self, doubt: Untrusted) -> frozenset[str]:
        names = doubt.names & self._names or frozenset(self._names)
        self._say(names, doubt.reason)
        return names

    def _say(self, names: Iterable[str], reason: str) -> None:
        """Say once which parameters go through the generic engine in some batches, and why."""
        new = set(names) - self._told
        if new:
            self._told |= new
            log.warning(
                "%d parameters go through the generic engine in some batches, since %s: %s",
                len(new),
                reason,
                _listed(new),
            )

    def _rows(self, batch: Any, without: frozenset[str]) -> tuple[FeatureRows, Set[str], bool]:
        """Features by known layers, the parameters not among them, and if samples may mix."""
        out = _zeros(batch, self._projector.dim)
        outputs, doubtful, mixed = self._accumulate(batch, self._projector, lambda _: out, without)
        for reason, names in doubtful.items():
            self._say(names, reason)
        return FeatureRows(out, outputs), without.union(*doubtful.values()), mixed

    def _accumulate(
        self, batch: Any, projector: Projector, out_of: OutOf, without: Set[str] = frozenset()
    ) -> tuple[RowOutputs, dict[str, Set[str]], bool]:
        """Add the projections of known layers' parameters where ``out_of`` says, but of some.

        Gives the outputs, by the reason the parameters that were left out, since their gradients
        cannot be cut into those of samples in this batch, and whether samples may see one another.
        """
        following = Following(batch_size(batch), self._kept)
        tape = Tape(following, self._constants, projector, out_of)
        own = {n: p for n, p in self._canonical.items() if n in self._names and n not in without}
        with only(self._all_parameters, own) as names, closing(tape):
            recorder = Recorder(names, tape, following)
            rows = recorder.outputs(self._output, self._model, batch)
            self.autocast = self.autocast or recorder.autocast
            ends = reached(recorder.tops or [rows.output.grad_fn], tape.passed)
            unknown = {names[id(n.variable)] for n in ends.leaves if id(n.variable) in names}  # type: ignore[attr-defined]
            if ends.python:
                unknown |= recorder.hidden
            unplaced = (following.doubtful(ends.nodes) | tape.doubtful) - unknown
            if following.misread:
                raise Untrusted(following.misread, _MISREAD)
            tape.backward(rows.output, ends.leaves, unknown | unplaced)
        doubtful: dict[str, Set[str]] = {_UNKNOWN: unknown, _UNPLACED: unplaced}
        outputs = RowOutputs(*(column.detach() for column in rows))
        return outputs, doubtful, following.mixed and following.batch > 1

    def _prepare(self, first: Any) -> None:
        """Send to the generic engine for ever what is unknown, or found wrong, in the first samples."""
        need_graph(self._output, self._model, first)
        truth = Truth.of(self.samples(first))
        self._generic.tolerance = truth.tolerance
        self._generic.first = first
        try:
            self._constants = find_constants(self._forward, first, frozenset(self._names))
        except Untrusted as doubt:
            self._exclude(set(self._names), doubt.reason)
        while self._names:
            try:
                wrong = self._wrong(first, truth)
                reason = "they disagree with an ordinary backward pass"
            except Untrusted as doubt:
                wrong, reason = set(doubt.names & self._names or self._names), doubt.reason
            if not wrong:
                break
            self._exclude(wrong, reason)
        self._truth = truth

    def _forward(self, batch: Any, observer: Any, following: Following) -> None:
        with only(self._all_parameters, self._canonical) as names:
            recorder = Recorder(names, observer, following)
            recorder.outputs(self._output, self._model, batch)
        self.autocast = self.autocast or recorder.autocast

    def _exclude(self, wrong: Set[str], reason: str) -> None:
        self._names -= wrong
        log.info(
            "%d parameters go through the generic engine, since %s: %s",
            len(wrong),
            reason,
            _listed(wrong),
        )

    @property
    def _repeated(self) -> set[str]:
        """Parameters of layers whose outputs are given another shape than the model's."""
        repeated = [names for (names, _), how in self._constants.items() if how == "repeated"]
        return {name for names in repeated for name in names} & self._names

    def _wrong(self, first: Any, truth: Truth) -> set[str]:
        """Parameters whose sketches disagree with the truth; all where only their sum does."""
        sketches: dict[str, Tensor] = {}

        def sketch_of(name: str) -> Tensor:
            return sketches.setdefault(name, _zeros(first, truth.checker.dim))

        try:
            _, doubtful, _ = self._accumulate(first, truth.checker, sketch_of)
            for reason, names in doubtful.items():
                if names:
                    raise Untrusted(names, reason)
            wrong = disagreeing(truth, sketches, self._names)
            if wrong or not self._names:
                return wrong
            rows, *_ = self._rows(first, frozenset())
        except torch.OutOfMemoryError:
            raise
        except FAILURES as error:
            raise Untrusted(self._repeated, f"of an error ({_line(error)})") from error
        right = truth.projects_to(rows.features, self._projector, self._names)
        return set() if right else set(self._names)


def _listed(names: Set[str]) -> str:
    return ", ".join(sorted(names)[:8]) + (", ..." if len(names) > 8 else "")


def _line(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


def _zeros(batch: Any, dim: int) -> Tensor:
    first = first_leaf(batch)
    return torch.zeros(first.shape[0], dim, dtype=torch.float32, device=first.device)

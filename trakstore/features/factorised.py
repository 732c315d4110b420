"""The factorised engine: per-sample gradients from activations and output gradients.

One forward pass watched by :class:`~trakstore.features.recording.Recorder`, and one backward pass
that stops at the first layers and never computes a gradient of a weight. As soon as a layer's output
gradient is there, the layer's part of the features is added, and both factors are dropped.

A layer is cut into samples only where their place was followed through every function of the pass. A
parameter that autograd's graph reaches other than through a known layer, in any batch, goes through the
generic engine in that batch. And the first samples are compared with ordinary backward passes:
parameters that are not seen, or wrong there, go through the generic engine always. So the features are
the same for any model.

Batches of one shape are not replayed as a CUDA graph, because a replay runs no Python: whatever the
model's own code decides by a counter, a cache or a flag would stay as it was in the captured batch,
samples would not be followed, and an activation that is changed in place would go unnoticed. Only the
few rows that are compared in each block could show such an error.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence, Set
from contextlib import closing
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils import _pytree as tree

from trakstore.features.apart import Apart, Contacts
from trakstore.features.axes import Following
from trakstore.features.constants import Constants, derived_instead, find_constants
from trakstore.features.gradients import (
    FAILURES,
    FeatureRows,
    GenericEngine,
    batch_size,
    cut,
    joined,
    no_features,
)
from trakstore.features.graph import reached
from trakstore.features.outputs import ModelOutput, RowOutputs
from trakstore.features.plain import copied, need_alike, need_graph, only
from trakstore.features.projectors import Gathered, Piece, Projector
from trakstore.features.quantised import hidden_products
from trakstore.features.recording import Recorder, Untrusted
from trakstore.features.selfcheck import Samples, Truth, disagreeing
from trakstore.features.sharding import WHOLE, Sharding
from trakstore.features.spread import SpreadSums, first_device
from trakstore.features.tape import OutOf, Tape
from trakstore.features.wording import first_line, listed
from trakstore.planning import ranges

__all__ = ["FactorisedEngine"]

log = logging.getLogger("trakstore")

_UNPLACED = "it is not certain where in their layers' tensors the samples are"
_UNKNOWN = "their layers are not known"
_MISREAD = "the model uses sizes or dimensions of what they give for all samples"


class FactorisedEngine(GenericEngine):
    """Per-sample gradients of the selected parameters, projected.

    Parameters
    ----------
    model, output, parameters, projector, sharding
        As in :class:`GenericEngine`.

    Attributes
    ----------
    autocast : bool
        Whether the model turns on autocast by itself, known after the first call.
    tolerance : float
        Relative difference of features that rounding explains, known after the first call.
    apart : Apart
        Check of some samples alone, where they may have seen one another.
    """

    def __init__(
        self,
        model: nn.Module,
        output: ModelOutput,
        parameters: dict[str, nn.Parameter],
        projector: Projector,
        sharding: Sharding = WHOLE,
    ) -> None:
        super().__init__(model, output, parameters, projector, sharding)
        # A hook on a weight could see or change its gradient, and the layers' way computes none: such
        # weights go through the generic engine.
        self._names = {n for n, p in self._parameters.items() if not p._backward_hooks}
        self._all_parameters = sharding.groups(model)
        every = (one for same in self._all_parameters for one in same)
        self._kept = frozenset(id(one) for one in (*every, *model.buffers()))
        self._products = hidden_products(model)
        self._constants: Constants = {}
        self._prepared = False
        self._warned: set[str] = set()
        self.autocast = False
        self.apart = Apart(self.samples, self.projector)

    @property
    def generic_parameters(self) -> tuple[str, ...]:
        """Canonical names of parameters that go through the generic engine, in model order."""
        return tuple(name for name in self._parameters if name not in self._names)

    def rows(self, batch: Any, draws: int = 1) -> FeatureRows:
        """Compute features and outputs; the first call checks itself on its first two samples.

        Parameters
        ----------
        draws : int
            Rows of each sample, one after the other, that differ in their labels alone: one forward
            pass serves them all.
        """
        if not self._prepared:
            self._prepare(cut(batch, 0, 2))
            self._prepared = True
        doubtful: frozenset[str] = frozenset()
        while self._names - doubtful:
            try:
                rows, more, contacts = self._rows(batch, doubtful, self._at_once_of(draws))
            except torch.OutOfMemoryError:
                raise
            except Untrusted as doubt:
                doubtful |= self._doubted(doubt)
            except FAILURES as error:  # the other engine raises a fault of the model itself again
                self._warn(self._names, f"of an error ({first_line(error)})")
                doubtful = frozenset(self._names)
            else:
                return self._with_others(batch, rows, more, contacts)
        return self.generic_rows(batch)

    def samples(self, batch: Any) -> Samples:
        """Return a batch for ordinary backward passes of the selected parameters."""
        return Samples(self._model, self._output, self._parameters, batch, self._sharding)

    @property
    def gradient_bytes(self) -> int:
        """Bytes of one gradient of the selected parameters."""
        return sum(p.numel() * p.element_size() for p in self._parameters.values())

    def disagreeing(self, batch: Any) -> tuple[str, ...]:
        """Return parameters whose gradients of these samples are not those of ordinary passes."""
        truth = Truth.of(self.samples(batch), self.projector)
        try:
            wrong = self._wrong(batch, truth)
        except (Untrusted, *FAILURES):
            wrong = set(self._names)
        return tuple(name for name in self._parameters if name in wrong)

    def _with_others(
        self, batch: Any, rows: FeatureRows, doubtful: Set[str], contacts: Contacts
    ) -> FeatureRows:
        """Add the features of all other parameters to those of known layers.

        Where samples see one another in this batch, all features are computed one sample at a time.
        """
        rest = [n for n in self._parameters if n not in self._names or n in doubtful]
        apart: RowOutputs | None = None
        if rest:
            others = self.generic_rows(batch, rest)
            apart = others.outputs
            rows = rows._replace(features=rows.features + others.features)
        elif contacts.mixed:
            apart = self._of_parts(batch, 2 if contacts.routed else batch_size(batch))
        alike = apart is None or self._alike(rows.outputs, apart)
        same = alike and not self.apart.differ(batch, rows, contacts, self.tolerance, apart)
        self.apart.note(mixed=not same)
        if same:
            return rows
        what = "gradients" if alike else "outputs"
        self._warn(self._parameters, f"samples have other {what} together than apart")
        return self.generic_rows(batch)

    def _alike(self, outputs: RowOutputs, others: RowOutputs) -> bool:
        """Tell whether outputs of the same samples are equal, but for rounding of the largest."""
        for one, other in zip(outputs, others, strict=True):
            near = self.tolerance * float(other.detach().abs().nan_to_num(0, 0, 0).max())
            if not torch.allclose(one.to(other), other, self.tolerance, near, equal_nan=True):
                return False
        return True

    def _of_parts(self, batch: Any, count: int) -> RowOutputs:
        """Compute outputs of a batch in parts, each by itself.

        One sample a part shows all that samples see of one another. Where rows are sent to experts,
        halves are taken, which show less: a pass for each sample through all experts would take too
        long.
        """
        size = batch_size(batch)
        with torch.no_grad():
            parts = [
                self._output(self._model, copied(cut(batch, *part)))
                for part in ranges(size, -(-size // count))
            ]
        return joined(parts)

    def all_differ(self, batch: Any) -> bool:
        """Tell whether every sample of a batch has another output than alone."""
        together, alone = (self._of_parts(batch, n).output for n in (1, batch_size(batch)))
        near = self.tolerance * float(alone.abs().nan_to_num(0, 0, 0).max())
        return bool(((together - alone).abs() > near).all())

    def _doubted(self, doubt: Untrusted) -> frozenset[str]:
        """Return the parameters that a doubt is about: all where it names none that are left."""
        names = doubt.names & self._names or frozenset(self._names)
        self._warn(names, doubt.reason)
        return names

    def _warn(self, names: Iterable[str], reason: str) -> None:
        """Say once which parameters go through the generic engine in some batches, and why."""
        new = sorted(set(names) - self._warned)
        if new:
            self._warned.update(new)
            log.warning(
                "%d parameters go through the generic engine in some batches, since %s: %s",
                *(len(new), reason, listed(new)),
            )

    def _at_once_of(self, draws: int) -> int:
        """Return the draws that share a forward pass: one where hooks of the model see its answers."""
        model = self._model
        hooked = model._forward_hooks or model._forward_pre_hooks
        return 1 if hooked or isinstance(model, torch.jit.ScriptModule) else draws

    def _rows(
        self, batch: Any, without: frozenset[str], draws: int = 1
    ) -> tuple[FeatureRows, Set[str], Contacts]:
        """Compute features by known layers, the parameters not among them, and how samples may mix."""
        batches = [_draw_of(batch, draw, draws) for draw in range(draws)]
        sums = [SpreadSums(no_features(one, self.projector.dim)) for one in batches]
        outs_of: list[OutOf] = [lambda _, device, own=own: own.on(device) for own in sums]  # type: ignore[misc]
        outputs, doubtful, contacts = self._accumulate(batches, self.projector, outs_of, without)
        for reason, names in doubtful.items():
            self._warn(names, reason)
        columns = map(_interleaved, zip(*outputs, strict=True))
        features = _interleaved([own.total() for own in sums])
        rows = FeatureRows(self._sharding.total(features), RowOutputs(*columns))
        return rows, without.union(*doubtful.values()), contacts

    def _accumulate(
        self,
        batches: Sequence[Any],
        projector: Projector,
        outs_of: Sequence[OutOf],
        without: Set[str] = frozenset(),
    ) -> tuple[list[RowOutputs], dict[str, Set[str]], Contacts]:
        """Add the projections of known layers' parameters, except ``without``, where ``outs_of`` say.

        The batches are the same samples with other labels: one forward pass serves all of them.

        Returns
        -------
        list of RowOutputs
            Outputs of each batch.
        dict of str to set of str
            Parameters that were left out in this batch, by the reason: their gradients cannot be cut
            into those of samples.
        Contacts
            Ways in which samples may have seen one another.
        """
        following = Following(batch_size(batches[0]), self._kept)
        tape = Tape(following, self._constants, projector, outs_of[0], self._counts)
        own = {n: p for n, p in self._parameters.items() if n in self._names and n not in without}
        with only(self._all_parameters, own) as names, closing(tape):
            recorder = Recorder(names, tape, following, self._products, self._sharding)
            if len(batches) == 1:
                rows = [recorder.outputs(self._output, self._model, batches[0])]
            else:
                rows = recorder.outputs_of_draws(self._output, self._model, batches)
            self.autocast = self.autocast or recorder.autocast
            # This is the graph behind the outputs, with all known layers stepped over. A parameter that
            # it still leads to is used in a way that no layer accounts for, and has a further gradient.
            # A torch.autograd.Function may hide from the graph any parameter that was used while
            # gradients were off.
            tops: list[Node | None] = [*recorder.tops] or [one.output.grad_fn for one in rows]
            ends = reached(tops, tape.passed)
            unknown = {names[id(n.variable)] for n in ends.leaves if id(n.variable) in names}  # type: ignore[attr-defined]
            if ends.python:
                unknown |= recorder.hidden
            unplaced = (following.doubtful(ends.nodes) | tape.doubtful) - unknown
            if following.misread:
                raise Untrusted(following.misread, _MISREAD)
            for left, one, out_of in zip(range(len(rows) - 1, -1, -1), rows, outs_of, strict=True):
                tape.out_of = out_of
                tape.backward(one.output, ends.leaves, unknown | unplaced, again=left > 0)
        doubtful: dict[str, Set[str]] = {_UNKNOWN: unknown, _UNPLACED: unplaced}
        outputs = [RowOutputs(*(column.detach() for column in one)) for one in rows]
        return outputs, doubtful, Contacts.of(following, ends.functions)

    def _prepare(self, first: Any) -> None:
        """Send for good to the generic engine what is unknown, or wrong, in the first samples."""
        need_graph(self._output, self._model, first)
        need_alike(self._model, self._output, self._parameters, first, self._sharding)
        truth = Truth.of(self.samples(first), self.projector)
        self.tolerance, self.first = truth.tolerance, first
        try:
            self._constants = find_constants(self._forward, first, frozenset(self._names))
        except Untrusted as doubt:
            self._exclude(set(self._names), doubt.reason)
        # Every exclusion calls for another round: what was wrong before may have hidden other errors,
        # and the parameters that are left must be right by themselves.
        while self._names:
            try:
                wrong = self._wrong(first, truth)
                reason = "they disagree with an ordinary backward pass"
            except Untrusted as doubt:
                wrong, reason = set(doubt.names & self._names or self._names), doubt.reason
                if derived_instead(self._constants, wrong):
                    continue
            if not wrong:
                break
            self._exclude(wrong, reason)

    def _counts(self, piece: Piece) -> bool:
        """Tell whether this rank adds a piece of a gradient that every rank has whole."""
        span = self._spans.get(piece.name)
        # Rows that an index picks come from all tokens, whichever rows of the weight a rank has.
        divided = span is not None and (span.dim == 1 or not isinstance(piece, Gathered))
        return divided or self._sharding.counts(piece.name)

    def _forward(self, batch: Any, observer: Any, following: Following) -> None:
        with only(self._all_parameters, self._parameters) as names:
            recorder = Recorder(names, observer, following, self._products, self._sharding)
            recorder.outputs(self._output, self._model, batch)
        self.autocast = self.autocast or recorder.autocast

    def _exclude(self, wrong: Set[str], reason: str) -> None:
        self._names -= wrong
        log.info(
            "%d parameters go through the generic engine, since %s: %s",
            *(len(wrong), reason, listed(sorted(wrong))),
        )

    @property
    def _repeated(self) -> set[str]:
        """Parameters of layers whose outputs are repeated for each sample."""
        repeated = [names for (names, _), how in self._constants.items() if how == "repeated"]
        return {name for names in repeated for name in names} & self._names

    def _wrong(self, first: Any, truth: Truth) -> set[str]:
        """Return parameters whose sketches disagree with the truth; all if only the sum does."""
        sketches: dict[str, Tensor] = {}

        def sketch_of(name: str, device: torch.device | None = None) -> Tensor:
            return sketches.setdefault(name, no_features(first, truth.checker.dim).to(device))

        try:
            _, doubtful, _ = self._accumulate([first], truth.checker, [sketch_of])
            for reason, names in doubtful.items():
                if names:
                    raise Untrusted(names, reason)
            if self._sharding.tensor_parallel:
                own = sorted(self._names)
                parts = self._sharding.total(torch.stack([sketch_of(name) for name in own]))
                sketches = dict(zip(own, parts, strict=True))
            home = first_device(self._model)
            sketches = {name: sketch.to(home) for name, sketch in sketches.items()}
            wrong = disagreeing(truth, sketches, self._names)
            if wrong or not self._names:
                return wrong
            rows, *_ = self._rows(first, frozenset())
        except torch.OutOfMemoryError:
            raise
        except FAILURES as error:
            raise Untrusted(self._repeated, f"of an error ({first_line(error)})") from error
        right = truth.projects_to(rows.features, self.projector, self._names)
        return set() if right else set(self._names)


def _draw_of(batch: Any, draw: int, draws: int) -> Any:
    """Return the rows of one draw, from a batch in which a sample's draws follow one another."""
    return batch if draws == 1 else tree.tree_map(lambda tensor: tensor[draw::draws], batch)


def _interleaved(parts: Sequence[Tensor]) -> Tensor:
    """Join the rows of draws, so that those of a sample follow one another."""
    return parts[0] if len(parts) == 1 else torch.stack(list(parts), 1).flatten(0, 1)

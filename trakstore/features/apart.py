"""Samples of a batch computed alone, where they may have seen one another."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.nn.modules._functions import BackwardHookFunction
from torch.utils import _pytree as tree

from trakstore.features.axes import Following
from trakstore.features.gradients import FeatureRows, batch_size, cut
from trakstore.features.outputs import RowOutputs
from trakstore.features.outputs.code import is_installed
from trakstore.features.projectors import Projector
from trakstore.features.selfcheck import Samples, features_alone, most_tolerance

__all__ = ["Apart", "Contacts", "apart_by", "changes_gradients"]

_MORE = 3  # times the rounding of the sample itself


class Contacts(NamedTuple):
    """Ways in which samples of a batch may have seen one another.

    Attributes
    ----------
    mixed : bool
        Whether they may have in the forward pass.
    routed : bool
        Whether an index of unknown origin may have moved samples in the forward pass.
    gradients : bool
        Whether they may have in the backward pass alone: by a hook of the model, or a
        ``torch.autograd.Function`` of its own.
    decided : list of Tensor, bool, shape (samples,)
        For each question that the model asked of all samples at once: the samples for which the answer
        alone would have been another.
    """

    mixed: bool
    routed: bool
    gradients: bool
    decided: list[Tensor]

    @classmethod
    def of(cls, following: Following, functions: Iterable[Node]) -> Contacts:
        """Sum up a pass, by what was followed and the Python functions in its graph."""
        if following.batch == 1:
            return cls(mixed=False, routed=False, gradients=False, decided=[])
        gradients = following.hooked or any(changes_gradients(type(one)) for one in functions)
        # A question mixes samples only where the answer to all together differs from that to one alone.
        mixed = following.mixed or any(bool(others.any()) for others in following.decided_numbers)
        return cls(mixed, following.routed, gradients, following.decided)


@cache
def changes_gradients(node: type) -> bool:
    """Tell whether a function of autograd runs code of the model in the backward pass.

    Functions of installed packages are trusted to keep the samples apart, as those of torch are.
    """
    function = getattr(node, "_forward_cls", node)
    return function is BackwardHookFunction or not is_installed(function)


@dataclass
class Apart:
    """A check that rows of a batch equal those of its samples alone, by comparing a few of them.

    Attributes
    ----------
    samples_of : callable
        Gives a batch for ordinary backward passes.
    projector : Projector
    met : bool
        Whether some row did not. All batches in which samples may see one another are then taken to be
        wrong.
    drawn : bool
        Whether a sample drawn at random showed it: earlier batches may then have been wrong unnoticed.
    """

    samples_of: Callable[[Any], Samples]
    projector: Projector
    met: bool = False
    drawn: bool = False
    _answered: set[int] = field(default_factory=set)
    _count: int = 0
    _batches: int = 0
    _mixed: int = 0

    def begin(self) -> None:
        """Begin a block: each question of the model is tried anew on one of its samples."""
        self._answered.clear()
        self.drawn = False
        self._batches = self._mixed = 0

    def note(self, *, mixed: bool) -> None:
        """Count a batch, and whether its samples saw one another."""
        self._batches += 1
        self._mixed += mixed

    @property
    def always(self) -> bool:
        """Tell whether samples saw one another in every batch of the block."""
        return self._mixed == self._batches > 0

    def differ(
        self,
        batch: Any,
        rows: FeatureRows,
        contacts: Contacts,
        tolerance: float,
        others: RowOutputs | None,
    ) -> bool:
        """Compare some rows of a batch with their samples alone.

        For each question that the model asked of all samples at once, one sample is compared for which
        the answer alone would have been another. Where samples may have seen one another otherwise, one
        more is: that whose output is furthest from its output apart (``others``), else one drawn at
        random.
        """
        suspect = contacts.mixed or contacts.gradients
        draws = batch_size(batch) // len(contacts.decided[0]) if contacts.decided else 1
        other = {sample * draws for sample in self._of_questions(contacts.decided)}
        if self.met and (suspect or other):
            return True
        if any(self._is_other(batch, rows, sample, tolerance) for sample in sorted(other)):
            self.met = True
        elif suspect and self._is_other(batch, rows, self._draw(rows.outputs, others), tolerance):
            self.met = self.drawn = True
        return self.met and bool(suspect or other)

    def _draw(self, outputs: RowOutputs, others: RowOutputs | None) -> int:
        size = len(outputs.output)
        if others is not None:
            # Outputs that are no further apart than rounding may have gradients that are.
            far = (outputs.output - others.output).abs().nan_to_num(0, 0, 0)
            if bool(far.any()):
                return int(far.argmax())
        # The golden ratio's multiples are spread evenly, whatever the size of a batch is.
        self._count += 1
        return int(self._count * 0.6180339887498949 % 1 * size)

    def _of_questions(self, decided: list[Tensor]) -> list[int]:
        """Return, for each new question, the first sample that alone would get another answer."""
        new = [at for at in range(len(decided)) if self.met or at not in self._answered]
        if not new:
            return []
        first = []
        for at, others in zip(new, torch.stack([decided[at] for at in new]).tolist(), strict=True):
            if True in others:
                self._answered.add(at)
                first.append(others.index(True))
        return first

    def _is_other(self, batch: Any, rows: FeatureRows, sample: int, tolerance: float) -> bool:
        own, size = rows.features.detach(), batch_size(batch)
        scale = float(own.nan_to_num(0, 0, 0).norm()) / size**0.5
        one = self.samples_of(cut(batch, sample, sample + 1))
        return apart_by(one, self.projector, own[sample].cpu(), scale, tolerance, size) is not None


def apart_by(
    one: Samples, projector: Projector, row: Tensor, scale: float, tolerance: float, size: int
) -> float | None:
    """Compare a row with the features of its sample alone.

    Parameters
    ----------
    one : Samples
        The sample, as a batch of one.
    projector : Projector
    row : Tensor, shape (dim,), float32
        Features of the sample, on the CPU.
    scale : float
        Norm of a row of its kind: rounding is of that size also in rows that are small.
    tolerance : float
        Relative difference that rounding explains.
    size : int
        Samples of the batch in which the row was computed.

    Returns
    -------
    float or None
        Relative difference where rounding does not explain it, else None.
    """
    alone = features_alone(one, projector)[0]
    if not alone.isfinite().all():
        return None if not row.isfinite().all() else float("inf")
    scale = max(scale, float(alone.norm()), torch.finfo(torch.float32).tiny)
    apart = float((row - alone).norm()) / scale
    if apart <= tolerance:
        return None
    # The same sample beside copies of itself is computed by the same products as it was in its batch,
    # and sees no other: what it differs by then is rounding, as where an expert was nearly not chosen.
    copies = tree.tree_map(lambda leaf: leaf.repeat(size, *[1] * (leaf.ndim - 1)), one.batch)
    beside = _first_of(
        Samples(one.model, one.output, one.parameters, copies, one.sharding), projector
    )
    rounding = float((beside - alone).norm()) / scale
    explained = _MORE * rounding if rounding <= most_tolerance(one) else 0.0
    return None if apart <= explained else apart


def _first_of(samples: Samples, projector: Projector) -> Tensor:
    """Return the features of the first sample of a batch, by a backward pass through all of it."""
    out = samples.zeros(1, projector.dim)
    only = torch.zeros(samples.count)
    only[0] = 1
    samples.signed(only, lambda name, tile: projector.add(out, name, tile))
    return samples.sharding.total(out)[0].cpu()

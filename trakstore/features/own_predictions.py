"""Predictions of the samples of a batch, equal to those that each has alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from trakstore.features.apart import Contacts
from trakstore.features.axes import Axis
from trakstore.features.followed_pass import FollowedPass
from trakstore.features.gradients import FAILURES, batch_size, cut
from trakstore.features.outputs import ModelOutput, RowOutputs
from trakstore.features.outputs.predicted_classes import PredictsClasses
from trakstore.features.plain import copied
from trakstore.features.sharding import WHOLE, Sharding

__all__ = ["OwnPredictions"]

_NEAR = 1e-3  # difference that rounding explains, relative to a sample's largest logit
_SHORTCUTS = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)


@dataclass
class OwnPredictions:
    """Predictions of samples that may see one another in a batch.

    Attributes
    ----------
    model : nn.Module
    output : PredictsClasses
        Output that says what is predicted.
    sharding : Sharding
        Spread of the model over ranks.
    """

    model: nn.Module
    output: PredictsClasses
    sharding: Sharding = WHOLE
    _pass: FollowedPass = field(init=False)
    _takes_shortcuts: bool = field(init=False)

    def __post_init__(self) -> None:
        self._pass = FollowedPass(self.model, self.sharding)
        # Watched, torch's own attention takes another path, which rounds differently: logits are then
        # taken from a pass that is not watched.
        modules = self.model.modules()
        self._takes_shortcuts = any(isinstance(one, _SHORTCUTS) for one in modules)

    @torch.no_grad()
    def of(self, batch: Any, counted: Tensor) -> Tensor:
        """Compute the logits of a batch, ``(samples, positions, classes)``.

        Parameters
        ----------
        batch : tree of Tensor
        counted : Tensor, bool, shape (samples, positions)
            Positions whose logits count.
        """
        logits, doubtful = self._together(batch)
        changed = {}
        for sample in doubtful:
            alone = self.output.predicted(self.model, copied(cut(batch, sample, sample + 1)))[0]
            asked = counted[sample]
            # Logits that differ by rounding alone stay those of the batch, on either path of the model.
            if not _alike(logits[sample][asked], alone[asked]):
                changed[sample] = alone
        if not changed:
            return logits
        return torch.stack([changed.get(at, own) for at, own in enumerate(logits)])

    def _together(self, batch: Any) -> tuple[Tensor, list[int]]:
        """Return logits by one pass, and the samples that may have others alone."""
        size = batch_size(batch)
        if size == 1:
            return self.output.predicted(self.model, copied(batch)), []
        following = self._pass.following(size)
        try:
            logits = self._pass.outputs(_Predictions(self.output), batch, following).output
            placed = isinstance(following.of(logits), Axis)
            if self._takes_shortcuts:
                logits = self.output.predicted(self.model, copied(batch))
        except torch.OutOfMemoryError:
            raise
        except FAILURES:  # the model cannot be watched; any fault of its own is raised again here
            return self.output.predicted(self.model, copied(batch)), [*range(size)]
        contacts = Contacts.of(following, ())
        # A script that mixes samples leaves no trace without gradients: then every sample is in doubt.
        if contacts.mixed or self._pass.scripted or not placed:
            return logits, [*range(size)]
        if not contacts.decided:
            return logits, []
        # A sample for which every answer to the model's questions is the same alone takes the same
        # branches alone.
        return logits, torch.stack(contacts.decided).any(0).nonzero()[:, 0].tolist()


class _Predictions(ModelOutput):
    """All logits of a model, as a watched pass takes them."""

    name = "predictions"

    def __init__(self, output: PredictsClasses) -> None:
        self._output = output

    def __call__(self, model: Any, batch: Any) -> RowOutputs:
        logits = self._output.predicted(model, batch)
        return RowOutputs(logits, logits, logits)


def _alike(logits: Tensor, alone: Tensor) -> bool:
    if logits.shape != alone.shape:
        return False
    near = _NEAR * float(alone.abs().nan_to_num(0, 0, 0).max()) if alone.numel() else 0.0
    return torch.allclose(logits, alone, _NEAR, near, equal_nan=True)

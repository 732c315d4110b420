"""Outputs that predict classes, of which labels can be drawn."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from trakstore.errors import TrakStoreError
from trakstore.features.outputs.model_output import Model, ModelOutput

__all__ = ["PredictsClasses", "need_classes"]


class PredictsClasses(ABC):
    """An output that asks for classes at some positions of each sample: one, or those of a sequence."""

    @property
    @abstractmethod
    def averaged(self) -> bool:
        """True where a loss is the mean of those of a sample's positions, False where it is the sum."""

    @abstractmethod
    def counted(self, model: Model, batch: Any) -> Tensor:
        """Tell which positions of a batch are asked for, bool, shape (batch, positions)."""

    @abstractmethod
    def predicted(self, model: Model, batch: Any) -> Tensor:
        """Compute the logits of all positions, shape (batch, positions, classes)."""

    @abstractmethod
    def relabelled(self, model: Model, batch: Any, labels: Tensor) -> Any:
        """Return a batch with other labels, shape (batch, positions), where positions are asked for."""


def need_classes(output: ModelOutput) -> PredictsClasses:
    """Return an output if labels can be drawn for it.

    Raises
    ------
    TrakStoreError
        When it predicts no classes.
    """
    if isinstance(output, PredictsClasses):
        return output
    raise TrakStoreError(
        f"labels cannot be drawn for the output {output.name!r}: it predicts no classes, as 'margin', "
        f"'cross_entropy', 'causal_lm' and 'masked_lm' do"
    )

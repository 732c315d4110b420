"""Columns of samples that are dicts: those a model and its output take, and those left aside."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils import _pytree as tree

from trakstore.features.outputs import ModelOutput
from trakstore.features.outputs.model_output import named_arguments

__all__ = ["SampleColumns"]

log = logging.getLogger("trakstore")

# Names of columns whose one number tells samples apart.
_NAMES = re.compile(r"(.*_)?(id|idx|index)")


@dataclass(frozen=True)
class SampleColumns:
    """Columns of dict samples that a model and its output take.

    Attributes
    ----------
    arguments : frozenset of str
        Parameter names in the signature of the model's forward; empty where it has none.
    read : frozenset of str or None
        Further columns that the output reads; None where it may read any.
    """

    arguments: frozenset[str]
    read: frozenset[str] | None

    @classmethod
    def of(cls, model: nn.Module, output: ModelOutput) -> SampleColumns:
        """Ask a model's forward, and its output."""
        return cls(named_arguments(model), output.columns)

    def without_metadata(self, samples: list[Any]) -> list[Any]:
        """Leave out what cannot be an input: texts, other objects, sample ids, the other label."""
        columns = _columns(samples)
        aside = {name for name, values in columns.items() if self._is_metadata(name, values)}
        return _without(aside | self._other_label(columns, _single), samples)

    def as_trainer(self, samples: list[Any]) -> list[Any]:
        """Leave out all columns that forward does not name, as ``Trainer`` of transformers does.

        Those that the output reads stay. Where it may read any, all columns of numbers stay.
        """
        samples = self.without_metadata(samples)
        if self.read is None or not self.arguments:
            return samples
        labels = {"label_ids"} if "labels" in self.read else set()
        kept = self.arguments | self.read | labels
        return _without(_columns(samples).keys() - kept, samples)

    def of_batch(self, batch: Any) -> Any:
        """Leave out of a batch what a collator carried along: non-numbers, or the other label."""
        if not isinstance(batch, dict):
            return batch
        aside = {k for k, value in batch.items() if self._foreign(k) and not _has_numbers(value)}
        columns = {name: [value] for name, value in batch.items()}
        return _without(aside | self._other_label(columns, _single_each), [batch])[0]

    def _foreign(self, name: str) -> bool:
        """Tell whether a column is known to be taken neither by the model nor by the output."""
        return name not in self.arguments and name not in (self.read or ())

    def _is_metadata(self, name: str, values: list[Any]) -> bool:
        if not self._foreign(name):
            return False
        if not any(map(_has_numbers, values)):
            return True
        # Where the output may read any column, a number may be what it weighs samples by, whatever its
        # name.
        return self.read is not None and bool(_NAMES.fullmatch(name)) and all(map(_single, values))

    def _other_label(self, columns: Mapping[str, list[Any]], single: Any) -> set[str]:
        """Return the one of ``label`` and ``labels`` that belongs to another task than the output's.

        An output of sequences reads ``labels`` alone: one label a sample would be a class of the whole
        text. An output of classes reads either; where both are there, the one that is a single number.
        """
        if self.read is None or "label" not in columns or "label" in self.arguments:
            return set()
        one = all(map(single, columns["label"]))
        if "label" not in self.read:
            return {"label"} if one and "labels" in self.read else set()
        if "labels" not in columns:
            return set()
        return {"labels"} if one and not all(map(single, columns["labels"])) else {"label"}


def _columns(samples: list[Any]) -> dict[str, list[Any]]:
    """Return the values of each column; nothing where samples are no dicts."""
    if not all(isinstance(sample, Mapping) for sample in samples):
        return {}
    names = dict.fromkeys(name for sample in samples for name in sample)
    return {name: [one[name] for one in samples if name in one] for name in names}


def _without(aside: set[str], samples: list[Any]) -> list[Any]:
    if not aside:
        return samples
    _tell(tuple(sorted(map(str, aside))))
    return [{k: value for k, value in one.items() if k not in aside} for one in samples]


@cache
def _tell(names: tuple[str, ...]) -> None:
    """Log the names of columns that are left out: once in a process, not for every batch."""
    log.info(
        "columns that are carried along, since neither the model's forward nor its output takes them: "
        "%s",
        ", ".join(names),
    )


def _has_numbers(value: Any) -> bool:
    """Tell whether a value holds one or more numbers, and nothing else."""
    leaves = tree.tree_leaves(value)
    return bool(leaves) and all(map(_is_number, leaves))


def _is_number(leaf: Any) -> bool:
    if isinstance(leaf, np.ndarray | np.generic):
        return leaf.dtype.kind in "biufc"
    return isinstance(leaf, Tensor | int | float | complex)


def _single(value: Any) -> bool:
    """Tell whether a value of a sample is one number."""
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim == 0
    return _is_number(value)


def _single_each(column: Any) -> bool:
    """Tell whether a column of a batch has one number for each sample."""
    return isinstance(column, Tensor) and column.ndim == 1

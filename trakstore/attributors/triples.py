"""Triples (head, relation, tail): their data sets, and the output of a model that scores them."""

from __future__ import annotations

from inspect import Parameter
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trakstore.errors import TrakStoreError
from trakstore.features.outputs import ModelOutput, RowOutputs
from trakstore.features.outputs.model_output import Model, parameters_of, widened
from trakstore.quantities import is_whole

_ENTRIES = 3


class TripleScore(ModelOutput):
    """Score f of a triple as the output, with the logistic loss of its label.

    Batches are ``(head, relation, tail)``, which are true, or ``(head, relation, tail, label)`` with
    label 1 for true and 0 for false; the model takes the first three and gives a score for each triple.
    With s = 1 for true and -1 for false, loss = log(1 + exp(-s·f)) and ``out_to_loss`` = s / (1 +
    exp(s·f)).
    """

    name = "triple_score"
    calls_alone = True

    def __call__(self, model: Model, batch: Any) -> RowOutputs:
        """See :meth:`ModelOutput.__call__`."""
        score = widened(model(*batch[:_ENTRIES])).reshape(-1)
        sign = torch.ones_like(score)
        if len(batch) > _ENTRIES:
            sign = torch.where(batch[_ENTRIES] > 0.5, sign, -sign)
        return RowOutputs(score, F.softplus(-sign * score), sign * torch.sigmoid(-sign * score))

    def check(self, model: Model, batch: Any) -> int | None:
        """Raise unless the model gives one score for each triple.

        Raises
        ------
        TrakStoreError
            When it gives more or fewer.
        """
        scores = model(*batch[:_ENTRIES])
        if not isinstance(scores, Tensor) or scores.numel() != len(batch[0]):
            got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise TrakStoreError(
                f"a model that takes (head, relation, tail) gives a score for each of the "
                f"{len(batch[0])} triples, got {got}: name another output="
            )
        return None


class TripleRows:
    """Rows of a tensor of triples as samples, each a tuple of three integers.

    Parameters
    ----------
    triples : Tensor, shape (n, 3), int64
        Heads, relations and tails.
    """

    def __init__(self, triples: Tensor) -> None:
        self._triples = triples

    def __len__(self) -> int:
        return len(self._triples)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return tuple(self._triples[index])


def with_triples(given: Any) -> Any:
    """Return triples of a factory (``mapped_triples``), tensor, array or list as samples.

    Anything else is returned unchanged.
    """
    rows = getattr(given, "mapped_triples", given)
    if isinstance(rows, Tensor | np.ndarray) and rows.ndim == 2:
        return TripleRows(torch.as_tensor(rows))
    return [as_triple(one) for one in given] if isinstance(given, list) else given


def as_triple(sample: Any) -> Any:
    """Return a triple that is a tensor or an array as a tuple, and any other sample as it is.

    Examples
    --------
    >>> as_triple(torch.tensor([3, 1, 7]))
    (3, 1, 7)
    """
    if not isinstance(sample, Tensor | np.ndarray) or sample.ndim != 1:
        return sample
    # Sequences of tokens are 1-D too: only tensors of a triple's length are taken apart.
    entries = tuple(sample.tolist()) if len(sample) in (_ENTRIES, _ENTRIES + 1) else ()
    return entries if is_triple(entries) else sample


def is_triple(sample: Any) -> bool:
    """Tell whether a sample is three integers, or three integers and a label."""
    if not isinstance(sample, tuple | list) or len(sample) not in (_ENTRIES, _ENTRIES + 1):
        return False
    return all(map(is_whole, sample[:_ENTRIES]))


def scores_triples(model: Any) -> bool:
    """Tell whether a model requires three arguments: head, relation and tail."""
    kinds = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    taken = parameters_of(model).values()
    needed = [one for one in taken if one.kind in kinds and one.default is Parameter.empty]
    return len(needed) == _ENTRIES

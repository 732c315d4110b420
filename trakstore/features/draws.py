"""Labels drawn from the model's own predictions, and samples that are repeated for several draws.

Row i·draws + d of a split ``train~sampled`` is sample i with the labels of draw d. A draw is a function
of the seed, the sample's id, the number of the draw and the position, so that it is the same for any
number of workers. Labels are drawn by one forward pass of each batch, from what each sample predicts
alone, and are then data: if the comparison with ordinary passes drew them again, rounding might give
others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree as tree

from trakstore.features.gradients import FeatureRows, cut
from trakstore.features.outputs import RowOutputs
from trakstore.features.outputs.predicted_classes import PredictsClasses
from trakstore.features.own_predictions import OwnPredictions
from trakstore.features.projectors.hashing import hash1
from trakstore.features.sharding import WHOLE, Sharding
from trakstore.planning import ranges
from trakstore.spec import LossScale
from trakstore.storage.ids import as_ids

__all__ = ["LabelDraws", "Repeated", "drawn_ids"]

_VALUES = 1 << 22  # probabilities that are summed up at once
_SAMPLES = 1 << 20  # no limit


@dataclass(frozen=True)
class Repeated:
    """A map-style data set in which each sample comes ``times`` times in a row."""

    dataset: Any
    times: int

    def __len__(self) -> int:
        return len(self.dataset) * self.times

    def __getitem__(self, row: int) -> Any:
        return self.dataset[row // self.times]


def drawn_ids(ids: NDArray[Any], draws: int) -> NDArray[Any]:
    """Name the rows of all draws: the sample's id, ``~`` and the number of the draw.

    Examples
    --------
    >>> drawn_ids(np.array([7, 8]), 2).tolist()
    ['7~0', '7~1', '8~0', '8~1']
    """
    return as_ids([f"{one}~{draw}" for one in ids.tolist() for draw in range(draws)])


@dataclass
class LabelDraws:
    """Drawer of labels, which keeps those of the rows of one block.

    Attributes
    ----------
    model : nn.Module
    output : PredictsClasses
        Output that says what is predicted.
    ids : ndarray, shape (samples,)
        Names of the samples.
    draws, seed : int
        Rows of each sample, and the number that all draws follow from.
    at_once : int
        Samples in one forward pass; halved when memory does not suffice.
    sharding : Sharding
        Spread of the model over ranks.
    loss_scale : {"", "root"}
        Scale of the losses of rows: see :meth:`scaled`.
    """

    model: nn.Module
    output: PredictsClasses
    ids: NDArray[Any]
    draws: int
    seed: int
    at_once: int = _SAMPLES
    sharding: Sharding = WHOLE
    loss_scale: LossScale = ""
    _kept: dict[int, Tensor] = field(default_factory=dict)
    _own: OwnPredictions = field(init=False)

    def __post_init__(self) -> None:
        # The draw of a sample depends neither on the samples beside it nor on how many there are.
        self._own = OwnPredictions(self.model, self.output, self.sharding)

    def forget(self, at_once: int) -> None:
        """Drop the labels that were drawn: another block begins, with ``at_once`` samples at once."""
        self._kept.clear()
        self.at_once = min(self.at_once, at_once)

    def labelled(self, rows: NDArray[np.int64], batch: Any) -> Any:
        """Return a batch of these rows of the split with drawn labels in place of its own."""
        counted = self.output.counted(self.model, batch)
        if not self._kept.keys() >= set(rows.tolist()):
            self._draw(rows, batch, counted)
        labels = torch.zeros(counted.shape, dtype=torch.int64)
        for at, row in enumerate(rows.tolist()):
            labels[at, counted[at].cpu()] = self._kept[row]
        return self.output.relabelled(self.model, batch, labels.to(counted.device))

    def scaled(self, batch: Any, rows: FeatureRows) -> FeatureRows:
        """Multiply loss and ``out_to_loss`` of some rows by √n, where they are means over n positions.

        With l = Σⱼ lⱼ / n, the Gauss-Newton matrix of a sample is Σⱼ Jⱼᵀ Hⱼ Jⱼ / n. Its positions'
        drawn gradients are independent, and have mean 0: the mean of ∇l ∇lᵀ over draws is
        Σⱼ Jⱼᵀ Hⱼ Jⱼ / n², in which a sequence weighs the less the longer it is.
        """
        if not self.loss_scale:
            return rows
        features, (output, loss, misses) = rows
        root = self.output.counted(self.model, batch).sum(1).sqrt().to(loss)
        return FeatureRows(features, RowOutputs(output, root * loss, root * misses))

    def _draw(self, rows: NDArray[np.int64], batch: Any, counted: Tensor) -> None:
        """Draw the labels of some rows, by one forward pass of each sample that they are of."""
        samples, first, which = np.unique(
            rows // self.draws, return_index=True, return_inverse=True
        )
        own = tree.tree_map(lambda one: one[torch.from_numpy(first).to(one.device)], batch)
        for start, logits in self._predicted(own, counted[torch.from_numpy(first)], len(samples)):
            for at, each in enumerate(logits, start):
                mine, positions = rows[which == at], counted[int(first[at])]
                drawn = _categorical(each[positions], self._uniforms(mine, int(positions.sum())))
                self._kept.update(zip(mine.tolist(), drawn.cpu(), strict=True))

    def _predicted(self, batch: Any, counted: Tensor, count: int) -> Iterator[tuple[int, Tensor]]:
        """Yield logits of some samples at once, with the number of the first of them."""
        start = 0
        while start < count:
            stop = min(start + self.at_once, count)
            try:
                logits = self._own.of(cut(batch, start, stop), counted[start:stop])
            except torch.OutOfMemoryError:
                if stop - start == 1:
                    raise
                self.at_once = (stop - start) // 2
            else:
                yield start, logits
                start = stop

    def _uniforms(self, rows: NDArray[np.int64], count: int) -> Tensor:
        """Return a number in 0..1 for each row and each of ``count`` positions, float64."""
        position = torch.arange(count)
        words = [hash1(position, self._key(int(row))) for row in rows]
        return (torch.stack(words).to(torch.float64) + 0.5) / 2**32

    def _key(self, row: int) -> tuple[int, ...]:
        sample, draw = divmod(row, self.draws)
        named = f"{self.seed}:{draw}:{self.ids[sample]}"
        digest = hashlib.sha256(named.encode()).digest()
        return tuple(int.from_bytes(digest[i : i + 4], "little") for i in (0, 4))


def _categorical(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Draw classes: the first whose cumulated probability is above a uniform number.

    Parameters
    ----------
    logits : Tensor, shape (positions, classes)
    uniforms : Tensor, shape (draws, positions)

    Returns
    -------
    Tensor of int64, shape (draws, positions)
    """
    parts = []
    for lo, hi in ranges(len(logits), max(1, _VALUES // logits.shape[1])):
        # Sums of many small probabilities, against numbers with 32 bits: in float64.
        sums = logits[lo:hi].to(torch.float64).softmax(1).cumsum(1)
        own = uniforms[:, lo:hi].T.contiguous().to(sums.device)
        parts.append(torch.searchsorted(sums, own).clamp(max=logits.shape[1] - 1))
    if not parts:
        return torch.zeros(len(uniforms), 0, dtype=torch.int64)
    return torch.cat(parts).T

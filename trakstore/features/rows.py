"""Rows of a split, computed: features and the columns beside them, in the stored dtypes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree as tree

from trakstore.errors import TrakStoreError
from trakstore.features.activations import NamedActivations
from trakstore.features.background import ReadAhead
from trakstore.features.factorised import FactorisedEngine
from trakstore.features.footprint import peak_bytes
from trakstore.features.outputs import ModelOutput
from trakstore.planning import ranges, window_rows
from trakstore.spec import StoreSpec
from trakstore.storage import layout
from trakstore.storage.columns import stored_activations, stored_rows

__all__ = ["RowComputer"]

_BLOCKS = 3  # held at once: computed, converted to the stored dtype, written in the background
_BATCHES = 2  # used, and read ahead

Piece = tuple[int, int]


@dataclass(frozen=True)
class RowComputer:
    """Computes the columns of rows, checked and in the stored dtypes.

    Attributes
    ----------
    engine : FactorisedEngine
    activations : NamedActivations
        Stored beside the features.
    output : ModelOutput
    batches : ReadAhead
        Reads samples ``(start, stop)``.
    ids : array
    spec : StoreSpec
    classes : int or None
        Labels must be below it.
    batch_size : int
        Samples that are read at once.
    at_once : int
        Samples whose gradients are computed at once.
    """

    engine: FactorisedEngine
    activations: NamedActivations
    output: ModelOutput
    batches: ReadAhead[Piece, Any]
    ids: NDArray[Any]
    spec: StoreSpec
    classes: int | None
    batch_size: int
    at_once: int

    def within(self, limit: int, samples: int, block_bytes: int) -> RowComputer:
        """The same, with as many samples at once as fit in ``limit`` bytes beside the model.

        What they need is what one and two of the first samples need, counted, which
        every worker finds alike: all compute the same micro-batches.

        Parameters
        ----------
        limit : int
            Bytes.
        samples : int
            How many the split has.
        block_bytes : int
            Of a block's features.

        Raises
        ------
        MemoryLimitError
            When not even one sample fits.
        """
        first = self.batches.read((0, min(2, samples)))
        one, two = (
            peak_bytes(lambda n=n: self._computed(_cut(first, 0, n)))  # type: ignore[misc]
            for n in (1, 2)
        )
        each = max(1, two - one if samples > 1 else one)
        read = _BATCHES * self.batch_size * _bytes(_cut(first, 0, 1))
        buffers = torch.get_num_threads() * max(0, one - each)  # what does not grow: each its own
        fixed = buffers + read + _BLOCKS * block_bytes
        what = f"featurizing one sample at a time (batch_size {self.batch_size}, blocks of "
        what += f"{block_bytes:,} bytes)"
        return replace(self, at_once=window_rows(self.batch_size, each, fixed, limit, what))

    def columns(self, start: int, stop: int, then: Piece | None = None) -> dict[str, NDArray[Any]]:
        """All columns of rows ``start`` to ``stop``.

        Parameters
        ----------
        start, stop : int
        then : tuple of int, optional
            The rows that will be asked for next, whose first samples are read meanwhile.

        Raises
        ------
        NumericsError
            When features are not finite or the stored dtype cannot hold them.
        TrakStoreError
            When a label is out of range.
        """
        pieces = [(start + lo, start + hi) for lo, hi in ranges(stop - start, self.batch_size)]
        following = then and (then[0], min(then[0] + self.batch_size, then[1]))
        parts = [
            part
            for piece, batch in self.batches.through(pieces, following)
            for part in self._batch(piece[0], batch)
        ]
        joined = {name: np.concatenate([part.pop(name) for part in parts]) for name in [*parts[0]]}
        features = joined.pop(layout.FEATURES)
        for name in self.activations.columns:
            joined[name] = stored_activations(joined[name], self.spec.dtype, start)
        stored = stored_rows(features, self.spec.dtype, start, self.spec.keep_bits)
        return {**joined, **stored, layout.SAMPLE_ID: self.ids[start:stop]}

    def _batch(self, start: int, batch: Any) -> Iterator[dict[str, NDArray[Any]]]:
        """The columns of a batch, as one part or several."""
        for lo, hi in ranges(len(tree.tree_leaves(batch)[0]), self.at_once):
            yield self._part(start + lo, _cut(batch, lo, hi))

    def _part(self, start: int, batch: Any) -> dict[str, NDArray[Any]]:
        labels = self.output.labels(batch)
        columns: dict[str, NDArray[Any]] = {}
        if labels is not None:
            columns["label"] = labels.cpu().numpy().astype(np.int64)
            self._check_labels(columns["label"], start)
        return columns | {name: _numpy(column) for name, column in self._computed(batch).items()}

    def _computed(self, batch: Any) -> dict[str, Tensor]:
        """What the model is asked for."""
        rows = self.engine.rows(batch)
        named = rows.outputs._asdict() | self.activations.of(batch)
        return {layout.FEATURES: rows.features, **named}

    def _check_labels(self, labels: NDArray[np.int64], start: int) -> None:
        if self.classes is None:
            return
        bad = np.flatnonzero((labels < 0) | (labels >= self.classes))
        if len(bad):
            raise TrakStoreError(
                f"sample {start + bad[0]} has label {labels[bad[0]]}, the model has classes 0 to "
                f"{self.classes - 1}"
            )


def _cut(batch: Any, start: int, stop: int) -> Any:
    return tree.tree_map(lambda tensor: tensor[start:stop], batch)


def _bytes(batch: Any) -> int:
    return sum(leaf.numel() * leaf.element_size() for leaf in tree.tree_leaves(batch))


def _numpy(tensor: Tensor) -> NDArray[Any]:
    return tensor.detach().cpu().numpy()

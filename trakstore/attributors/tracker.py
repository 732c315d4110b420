"""``TrainingDynamicsTracker``: called once a batch, by any training loop."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from trakstore.analysis.training_dynamics import training_dynamics
from trakstore.errors import TrakStoreError
from trakstore.features.background import OneBehind
from trakstore.quantities import as_whole
from trakstore.storage.backends.location import Where
from trakstore.storage.ids import as_ids
from trakstore.storage.opening import location_of
from trakstore.storage.store import FeatureStore
from trakstore.storage.tables.training_records import TrainingRun, add_part, next_order

__all__ = ["TrainingDynamicsTracker", "WithIds"]

Batch = tuple[int, Any, Tensor, Tensor, Tensor | None]


class WithIds:
    """A data set whose samples end in their id, for loaders that shuffle.

    Parameters
    ----------
    dataset : map-style data set
        Of tuples ``(input, ..., label)``.
    ids : sequence of int or str, optional
        Positions by default.
    """

    def __init__(self, dataset: Any, ids: Sequence[int] | Sequence[str] | None = None) -> None:
        if ids is not None and len(ids) != len(dataset):
            raise TrakStoreError(f"{len(dataset)} samples need as many ids, got {len(ids)}")
        self.dataset, self.ids = dataset, ids

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return (*self.dataset[index], index if self.ids is None else self.ids[index])


class TrainingDynamicsTracker:
    """Keeps, for each sample and epoch, loss, confidence, correctness, margin and EL2N.

    Batches are kept as they come and worked on and stored every ``save_interval`` batches, in the
    background; a run that dies loses those since then. Use it in ``with``, or call :meth:`close`.

    Parameters
    ----------
    dataset : map-style data set, or None
        Only its length is used, to tell ids that cannot be.
    save_interval : int
        Batches between two writes.
    store : path or FeatureStore
        Where features are, or will be.
    split : str
    rank : int
        Of processes that train together, each with its own samples.

    Notes
    -----
    A run that goes on from a checkpoint replaces what an earlier one, of the same rank, said of the
    epochs from its first on.
    """

    def __init__(
        self,
        dataset: Any = None,
        save_interval: int = 100,
        store: Where | FeatureStore = "dynamics.zarr",
        *,
        split: str = "train",
        rank: int = 0,
    ) -> None:
        self.save_interval, self.split = as_whole(save_interval, "save_interval", 1), split
        self.location = location_of(store, create=True)
        self._samples = None if dataset is None else len(dataset)
        began = datetime.now(UTC).isoformat(timespec="microseconds")
        order = next_order(self.location, split)
        name, rank = uuid.uuid4().hex[:12], as_whole(rank, "rank", 0)
        self._run, self._parts = TrainingRun(name, began, rank, order), 0
        self._waiting: list[Batch] = []
        self._background = OneBehind()

    def update(
        self,
        epoch: int,
        batch_idx: int,  # noqa: ARG002
        data: Any,  # noqa: ARG002
        targets: Tensor,
        predictions: Tensor,
        losses: Tensor | None = None,
        *,
        ids: Any = None,
    ) -> None:
        """Take in a batch.

        Parameters
        ----------
        epoch : int
        batch_idx, data
            Taken, and not used.
        targets : Tensor of int64, shape (batch,)
        predictions : Tensor, shape (batch, classes)
            Logits.
        losses : Tensor, shape (batch,), optional
            Of each sample; the cross-entropy when None or a mean.
        ids : sequence of int or str
            Sample ids, as :class:`WithIds` gives them.

        Raises
        ------
        TrakStoreError
            Without ids, or for shapes that do not go together.
        """
        if ids is None:
            raise TrakStoreError(
                "ids= are needed, since loaders shuffle: wrap the data set in WithIds, whose samples "
                "end in their id"
            )
        if predictions.ndim != 2 or targets.shape != predictions.shape[:1]:
            raise TrakStoreError(
                f"needed logits (batch, classes) and targets (batch,), got "
                f"{tuple(predictions.shape)} and {tuple(targets.shape)}"
            )
        each = None if losses is None or losses.shape != targets.shape else losses.detach()
        self._waiting.append((epoch, ids, targets.detach(), predictions.detach(), each))
        if len(self._waiting) >= self.save_interval:
            self.save()

    def save(self) -> None:
        """Store what came since the last time."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        ids = np.concatenate([_ids(batch[1]) for batch in waiting])
        epochs = np.concatenate([np.full(len(batch[2]), batch[0]) for batch in waiting])
        self._check(ids, epochs)
        write = partial(self._write, ids, epochs, waiting, self._parts)
        self._background.submit(write)
        self._parts += 1

    def analyze(self) -> xr.Dataset:
        """Summaries of each sample; see :func:`trakstore.analysis.training_dynamics`."""
        self.save()
        self._background.wait()
        return training_dynamics(self.location, self.split)

    def close(self) -> None:
        """Store what is left."""
        self.save()
        self._background.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def _write(
        self, ids: NDArray[Any], epochs: NDArray[np.int64], waiting: list[Batch], number: int
    ) -> None:
        measures = torch.cat([_measures(*batch[2:]) for batch in waiting]).cpu().numpy()
        add_part(self.location, self.split, self._run, number, ids, epochs, measures)

    def _check(self, ids: NDArray[Any], epochs: NDArray[np.int64]) -> None:
        if len(ids) != len(epochs):
            raise TrakStoreError(f"{len(epochs)} samples came with {len(ids)} ids")
        if (
            self._samples is not None
            and ids.dtype.kind in "iu"
            and len(np.unique(ids)) > self._samples
        ):
            raise TrakStoreError(
                f"there are more than {self._samples} ids, the size of the data set: ids must name "
                f"samples, not places in batches"
            )


def _measures(targets: Tensor, logits: Tensor, losses: Tensor | None) -> Tensor:
    """Loss, confidence, correct, margin and EL2N of a batch, shape (batch, 5), float32."""
    logits = logits.float()
    own = logits.gather(1, targets[:, None])[:, 0]
    others = logits.scatter(1, targets[:, None], -torch.inf)
    log_p = own - logits.logsumexp(1)
    p = logits.softmax(1)
    el2n = (p - F.one_hot(targets, logits.shape[1])).norm(dim=1)
    margin = own - others.amax(1)
    right = (logits.argmax(1) == targets).float()
    loss = -log_p if losses is None else losses.float()
    return torch.stack([loss, log_p.exp(), right, margin, el2n], dim=1)


def _ids(given: Any) -> NDArray[Any]:
    array = as_ids(given.detach().cpu() if isinstance(given, Tensor) else given)
    if array.ndim != 1:
        raise TrakStoreError(f"ids are one for each sample, got shape {array.shape}")
    return array

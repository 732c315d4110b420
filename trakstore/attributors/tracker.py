"""``TrainingDynamicsTracker``: called once a batch, by any training loop."""

from __future__ import annotations

from typing import Any

import xarray as xr
from torch import Tensor

from trakstore.analysis.training_dynamics import training_dynamics
from trakstore.errors import TrakStoreError
from trakstore.features.recorder import TrainingRecorder
from trakstore.storage.backends.location import Where
from trakstore.storage.store import FeatureStore


class TrainingDynamicsTracker(TrainingRecorder):
    """Record of each sample's loss, confidence, correctness, margin and EL2N at each epoch.

    Use it in ``with``, or call ``close``; a run that dies loses what came since the last write. A run
    that goes on from a checkpoint replaces what an earlier one, of the same rank, said of the epochs
    from its first on.

    Parameters
    ----------
    dataset : map-style data set, or None
        Only its length is used, to refuse ids that cannot be.
    save_interval : int
        Batches between two writes.
    store : path or FeatureStore
        Where features are, or will be.
    split : str
        Name of the data set in the store.
    rank : int
        Number of this process among those that train together, each with its own samples.
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
        samples = None if dataset is None else len(dataset)
        super().__init__(store, split, rank, save_interval, samples)

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
            Number of the epoch.
        batch_idx, data
            Taken, and not used.
        targets, predictions : Tensor, shapes (batch,) of int64, and (batch, classes)
            Classes of the samples, and logits.
        losses : Tensor, shape (batch,), optional
            Loss of each sample; the cross-entropy when None or a mean.
        ids : sequence of int or str
            Sample ids, as ``WithIds`` gives them; needed.

        Raises
        ------
        TrakStoreError
            There are no ids.
        """
        if ids is None:
            raise TrakStoreError(
                "ids= are needed, since loaders shuffle: wrap the data set in WithIds, whose samples "
                "end in their id"
            )
        self.add(epoch, ids, targets, predictions, losses)

    def analyze(self) -> xr.Dataset:
        """Summarise each sample; see :func:`trakstore.analysis.training_dynamics`."""
        self.close()
        return training_dynamics(self.location, self.split)

"""``TrainingDynamicsTracker``: called once a batch, from any training loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from trakstore.analysis.training_dynamics import training_dynamics
from trakstore.attributors.recognition import SampleRecogniser
from trakstore.errors import TrakStoreError
from trakstore.features.recorder import TrainingRecorder
from trakstore.storage.backends.location import Where
from trakstore.storage.store import FeatureStore


class TrainingDynamicsTracker(TrainingRecorder):
    """Record of each sample's loss, confidence, correctness, margin and EL2N at each epoch.

    Loaders shuffle, so that samples need ids: give ``ids=``, which ``DataLoader(WithIds(dataset))``
    puts at the end of each batch. Without ids, samples are recognised by their contents, if nothing
    changes these.

    Use it in ``with``, or call ``close``; a run that dies loses what came since the last write. A run
    that goes on from a checkpoint replaces the records of an earlier run of the same rank from its own
    first epoch on; a run on another data set is refused. An epoch lower than the one before begins such
    a run, with a warning. If a sample comes twice in an epoch, the last record counts.

    Parameters
    ----------
    dataset : map-style data set, or None
        More different integer ids than it has samples are refused; the ids themselves are not checked.
        If batches come without ids, its samples are read once, and each sample of a batch is looked up
        among them by its contents.
    save_interval : int
        Epochs between two writes; measures of more than 64 MB are stored sooner.
    store : path or FeatureStore
        Store of the features, which may be made later; by default ``dynamics.zarr`` in the working
        directory.
    split : str
        Name of the data set in the store.
    rank : int
        Number of this process among those that train together, each on its own samples.

    Raises
    ------
    TrakStoreError
        When the store has records of a data set of another size under this name.

    Examples
    --------
    >>> inputs, labels = torch.utils.data.default_collate(train)
    >>> with TrainingDynamicsTracker(store="memory://watched") as tracker:
    ...     for epoch in (0, 1):  # of training
    ...         tracker.update(epoch, 0, inputs, labels, model(inputs), ids=range(24))
    >>> tracker.analyze()["confidence"].shape
    (24,)
    """

    def __init__(
        self,
        dataset: Any = None,
        save_interval: int = 1,
        store: Where | FeatureStore = "dynamics.zarr",
        *,
        split: str = "train",
        rank: int = 0,
    ) -> None:
        self._dataset = dataset
        self._recogniser: SampleRecogniser | None = None
        samples = None if dataset is None else len(dataset)
        super().__init__(store, split, rank, save_interval, samples)

    def update(
        self,
        epoch: int,
        batch_idx: int,  # noqa: ARG002
        data: Any,
        targets: Any,
        predictions: Any,
        losses: Any | None = None,
        *,
        ids: Any = None,
    ) -> None:
        """Measure a batch.

        Parameters
        ----------
        epoch : int
            Number of the epoch, 0 or more.
        batch_idx : int
            Not used.
        data : Tensor, or tuple, list or dict of Tensor
            Inputs as the loader gave them. Without ids samples are recognised by these, which takes a
            copy on the CPU; with ids they are not used.
        targets, predictions : Tensor or array, shapes (batch,) of integers, and (batch, classes)
            Classes of the samples, and logits, which are measured before this returns. A sample with a
            NaN among its logits counts as predicted wrong.
        losses : Tensor or array, shape (batch,) or (batch, 1), optional
            Loss of each sample; the cross-entropy where None, or where it is a mean.
        ids : sequence of int or str, optional
            Sample ids, as from ``WithIds``. By default positions in the data set, found by the samples'
            contents. Needed if a loader changes samples at random.

        Raises
        ------
        TrakStoreError
            When there are no ids, and no data set or no such sample in it; when the store has records
            of other samples under this name, or ids of the other kind; when a target is no class, or
            shapes differ.
        """
        if ids is None:
            ids = self._recognised(epoch, data, targets)
        self.add(epoch, ids, targets, predictions, losses)

    def _recognised(self, epoch: int, data: Any, targets: Tensor) -> NDArray[np.int64]:
        if data is None or self._dataset is None:
            raise TrakStoreError(
                "ids= are needed, since loaders shuffle: wrap the data set in WithIds, whose samples "
                "end in their id; or give the data set here, and the batch's data, by which samples "
                "are recognised"
            )
        if self._recogniser is not None:
            return self._recogniser.positions(epoch, data, targets)
        self._recogniser = SampleRecogniser(self._dataset)
        positions = self._recogniser.positions(epoch, data, targets)
        self._identify(self._recogniser.digest)
        return positions

    def analyze(self) -> xr.Dataset:
        """Summarise each sample; see :func:`trakstore.analysis.training_dynamics`."""
        self.close()
        return training_dynamics(self.location, self.split)

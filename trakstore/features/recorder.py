"""Measures of samples while a model is trained, stored in the background."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from trakstore.errors import TrakStoreError
from trakstore.features.background import OneBehind
from trakstore.quantities import as_whole
from trakstore.storage.backends.location import Where
from trakstore.storage.ids import as_ids
from trakstore.storage.opening import location_of
from trakstore.storage.store import FeatureStore
from trakstore.storage.tables.training_records import TrainingRun, add_part, earlier_runs

__all__ = ["TrainingRecorder"]

_MOST_HELD = 64_000_000  # bytes of logits and targets


class TrainingRecorder:
    """Recorder of measures of batches: loss, confidence, correctness, margin and EL2N.

    Batches are kept as they come, and are measured and stored every ``save_interval`` epochs, or sooner
    where they take much memory, in the background; a run that dies loses those since then. Use it in
    ``with``, or call :meth:`close`.

    Parameters
    ----------
    store : path or FeatureStore
        Place where features are, or will be.
    split : str
        Name of the data set in the store.
    rank : int
        Number of this process among those that train together, each with its own samples.
    save_interval : int
        Epochs between two writes.
    samples : int, optional
        Size of the data set, to tell ids that cannot be, and another data set.

    Raises
    ------
    TrakStoreError
        The same rank has stored measures of a data set of another size there.
    """

    def __init__(
        self,
        store: Where | FeatureStore,
        split: str,
        rank: int,
        save_interval: int,
        samples: int | None = None,
    ) -> None:
        self.save_interval, self.split = as_whole(save_interval, "save_interval", 1), split
        self.location = location_of(store, create=True)
        self._samples = np.inf if samples is None else samples
        began = datetime.now(UTC).isoformat(timespec="microseconds")
        earlier = earlier_runs(self.location, split)
        order = 1 + max((run.order for run in earlier), default=0)
        name, rank = uuid.uuid4().hex[:12], as_whole(rank, "rank", 0)
        self._run, self._parts = TrainingRun(name, began, rank, order, samples), 0
        # Ranks may have a data set each: one is compared with what the same rank had.
        self._earlier = [run for run in earlier if run.rank == rank]
        self._refuse_other_data("samples", "{} samples")
        self._waiting: list[tuple[int, Any, Tensor, Tensor, Tensor | None]] = []
        self._held = 0  # bytes of the tensors that are waiting
        self._background = OneBehind()

    def add(
        self, epoch: int, ids: Any, targets: Tensor, logits: Tensor, losses: Tensor | None = None
    ) -> None:
        """Take in a batch: sample ids, classes (batch,), logits (batch, classes), losses (batch,)."""
        if logits.ndim != 2 or targets.shape != logits.shape[:1]:
            raise TrakStoreError(
                f"needed logits (batch, classes) and targets (batch,), got {tuple(logits.shape)} and "
                f"{tuple(targets.shape)}"
            )
        if not (isinstance(ids, Tensor) and ids.is_cuda):
            ids = _ids(ids)  # refuses what is no id
        if len(ids) != len(targets):
            raise TrakStoreError(f"{len(targets)} samples came with {len(ids)} ids")
        # Batches stay on their device, and are measured in the background: training does not wait for
        # a GPU here. A mean over the batch is no loss of its samples, which logits give as well.
        each = None if losses is None or losses.shape != targets.shape else losses.detach()
        epochs = {batch[0] for batch in self._waiting}
        if epoch not in epochs and len(epochs) >= self.save_interval:
            self.save()
        self._waiting.append((epoch, ids, targets.detach(), logits.detach(), each))
        self._held += targets.nbytes + logits.nbytes
        # Epochs of a large data set are more than memory should hold: these are stored sooner.
        if self._held >= _MOST_HELD:
            self.save()

    def _identify(self, digest: str) -> None:
        """Note a hash of all samples of the data set, and compare it with that of earlier runs.

        Raises
        ------
        TrakStoreError
            The same rank has stored measures of other samples there.
        """
        # All parts of a run have one description: a hash that comes after the first of them is late.
        if not self._parts and not self._waiting:
            self._run = replace(self._run, digest=digest)
            self._refuse_other_data("digest", "samples whose contents have the hash {:.8}")

    def _refuse_other_data(self, field: str, words: str) -> None:
        given = getattr(self._run, field)
        known = [value for run in self._earlier if (value := getattr(run, field)) is not None]
        # Their rows would be taken for one data set: an id names another sample in each.
        if given is not None and known and known[-1] != given:
            raise TrakStoreError(
                f"{self.location} has training dynamics of another data set as {self.split!r}: of "
                f"{words.format(known[-1])}, and this one has {words.format(given)}; give it another "
                f"place, store=, or another name there, split="
            )

    def save(self) -> None:
        """Store the batches that came since the last time."""
        if not self._waiting:
            return
        waiting, self._waiting, self._held = self._waiting, [], 0
        ids = np.concatenate([_ids(batch[1]) for batch in waiting])
        epochs = np.concatenate([np.full(len(batch[2]), batch[0]) for batch in waiting])
        if ids.dtype.kind in "iu" and len(np.unique(ids)) > self._samples:
            raise TrakStoreError(
                f"there are more than {self._samples} ids, the size of the data set: ids must name "
                f"samples, not places in batches"
            )
        self._background.submit(partial(self._write, self._parts, ids, epochs, waiting))
        self._parts += 1

    def close(self) -> None:
        """Store the batches that are left."""
        self.save()
        self._background.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def _write(self, number: int, ids: Any, epochs: Any, batches: list[Any]) -> None:
        measures = torch.cat([_measures(*batch[2:]) for batch in batches]).cpu().numpy()
        add_part(self.location, self.split, self._run, number, ids, epochs, measures)


def _measures(targets: Tensor, logits: Tensor, losses: Tensor | None) -> Tensor:
    """Compute loss, confidence, correctness, margin and EL2N, shape (batch, 5), float32."""
    logits = logits.float()
    own = logits.gather(1, targets[:, None])[:, 0]
    others = logits.scatter(1, targets[:, None], -torch.inf)  # the margin is to the best of these
    log_p = own - logits.logsumexp(1)
    # EL2N is the length of the loss's gradient by the logits.
    el2n = (logits.softmax(1) - F.one_hot(targets, logits.shape[1])).norm(dim=1)
    right = (logits.argmax(1) == targets).float()
    loss = -log_p if losses is None else losses.float()
    return torch.stack([loss, log_p.exp(), right, own - others.amax(1), el2n], dim=1)


def _ids(given: Any) -> NDArray[Any]:
    array = as_ids(given.detach().cpu() if isinstance(given, Tensor) else given)
    if array.ndim != 1:
        raise TrakStoreError(f"ids are one for each sample, got shape {array.shape}")
    return array

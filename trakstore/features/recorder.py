"""Measures of samples during training, stored in the background."""

from __future__ import annotations

import logging
import uuid
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trakstore.errors import TrakStoreError
from trakstore.features.background import OneBehind
from trakstore.features.training_measures import MARGIN, measure_batch, need_classes
from trakstore.quantities import as_whole
from trakstore.storage.backends.location import Where
from trakstore.storage.ids import as_ids
from trakstore.storage.opening import location_of
from trakstore.storage.store import FeatureStore
from trakstore.storage.tables.training_records import TrainingRun, add_part, stored_parts

__all__ = ["TrainingRecorder"]

log = logging.getLogger("trakstore")

_MOST_HELD = 64_000_000  # bytes of measures, ids, and
_AROUND = 1000  # of what Python and torch keep around a batch


class TrainingRecorder:
    """Recorder of measures of batches: loss, confidence, correctness, margin and EL2N.

    Batches are measured on their device as they come. The measures are stored in the background every
    ``save_interval`` epochs, or sooner where they take much memory; a run that dies loses those since
    the last time. Use the recorder in ``with``, or call :meth:`close`.

    Parameters
    ----------
    store : path or FeatureStore
        Store of the features, which may be made later.
    split : str
        Name of the data set in the store.
    rank : int
        Number of this process among those that train together, each on its own samples.
    save_interval : int
        Epochs between two writes.
    samples : int, optional
        Size of the data set. More different integer ids are refused, and so is a later run with another
        size.

    Raises
    ------
    TrakStoreError
        When the same rank has stored measures of a data set of another size there.
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
        parts = stored_parts(self.location, split)
        order = 1 + max((part.run.order for part in parts), default=0)
        self._run = TrainingRun(*_name_and_time(), as_whole(rank, "rank", 0), order, samples)
        self._parts = 0
        self._text_ids = parts[0].has_text_ids if parts else None
        # Each rank may have its own data set: it is compared with the earlier ones of the same rank.
        earlier = {part.run for part in parts if part.run.rank == self._run.rank}
        self._earlier = sorted(earlier, key=lambda run: run.sort_key)
        self._refuse_other_data("samples", "{} samples")
        # All integer ids so far, where ``samples`` is given.
        self._ids = np.empty(0, dtype=np.int64)
        self._waiting: list[tuple[int, Any, Tensor]] = []
        self._epochs, self._held = set[int](), 0  # epochs and bytes of the batches that are waiting
        self._last_epoch = 0
        self._warned = False
        self._background = OneBehind()

    def add(
        self, epoch: int, ids: Any, targets: Any, logits: Any, losses: Any | None = None
    ) -> None:
        """Take in a batch: sample ids, classes (batch,), logits (batch, classes), losses (batch,)."""
        epoch = as_whole(epoch, "epoch", 0)
        # These are measured now, since a loop may write its next batch over the tensors.
        measures = measure_batch(targets, logits, losses)
        ids = _ids(ids)
        if len(ids) != len(measures):
            raise TrakStoreError(f"{len(measures)} samples came with {len(ids)} ids")
        if not len(ids):
            return
        self._need_one_kind(is_text := not isinstance(ids, Tensor) and ids.dtype.kind == "T")
        if epoch not in self._epochs and len(self._epochs) >= self.save_interval:
            self.save()
        if epoch < self._last_epoch:
            self._begin_again(epoch)
        self._last_epoch, self._text_ids = epoch, is_text
        self._waiting.append((epoch, ids, measures))
        self._epochs.add(epoch)
        self._held += measures.nbytes + ids.nbytes + _AROUND
        # An epoch of a large data set may be more than memory should hold: it is stored in parts.
        if self._held >= _MOST_HELD:
            self.save()

    def _need_one_kind(self, is_text: bool) -> None:
        if self._text_ids not in (None, is_text):
            kind, before = ("text", "integers") if is_text else ("integers", "text")
            raise TrakStoreError(
                f"ids are {kind}, and those of {self.split!r} in {self.location} are {before}: one "
                f"split has ids of one kind; give these another split= or store="
            )

    def _begin_again(self, epoch: int) -> None:
        """Begin a new run of this process, for a loop that is run again."""
        self.save()
        log.warning(
            "epoch %d came after epoch %d: training began again, and what is recorded now replaces all "
            "from epoch %d on",
            epoch,
            self._last_epoch,
            epoch,
        )
        name, started = _name_and_time()
        self._run = replace(self._run, name=name, started=started, order=self._run.order + 1)
        self._parts = 0

    def _identify(self, digest: str) -> None:
        """Note a hash of all samples of the data set, and compare it with those of earlier runs.

        Raises
        ------
        TrakStoreError
            When the same rank has stored measures of other samples there.
        """
        # All parts of a run have one description: once a part is stored, the hash comes too late.
        if not self._parts and not self._waiting:
            self._run = replace(self._run, digest=digest)
            self._refuse_other_data("digest", "samples whose contents have the hash {:.8}")

    def _refuse_other_data(self, field: str, words: str) -> None:
        given = getattr(self._run, field)
        known = [value for run in self._earlier if (value := getattr(run, field)) is not None]
        # The same id would name different samples in the two, and their rows would be mixed.
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
        waiting, self._waiting, self._epochs, self._held = self._waiting, [], set(), 0
        ids = np.concatenate([_on_cpu(batch[1]) for batch in waiting])
        epochs = np.concatenate([np.full(len(batch[2]), batch[0]) for batch in waiting])
        # This copies on the caller's GPU stream, behind the work that made the measures; a copy in
        # another thread might run before it.
        measures = torch.cat([batch[2] for batch in waiting]).cpu()
        need_classes(measures, epochs)
        self._need_few(ids)
        self._warn_of_nan(measures, int(epochs[-1]))
        where = self.location, self.split, self._run, self._parts
        self._background.submit(partial(add_part, *where, ids, epochs, measures.numpy()))
        self._parts += 1

    def _need_few(self, ids: NDArray[Any]) -> None:
        if self._run.samples is None or self._text_ids:
            return
        self._ids = np.union1d(self._ids, ids)
        if len(self._ids) > self._run.samples:
            raise TrakStoreError(
                f"there are more than {self._run.samples} ids, the size of the data set: ids must name "
                f"samples, not places in batches"
            )

    def _warn_of_nan(self, measures: Tensor, epoch: int) -> None:
        lost = int(measures[:, MARGIN].isnan().sum())
        if lost and not self._warned:
            self._warned = True
            log.warning(
                "logits of %d samples hold NaN, up to epoch %d (a training that diverged?): they count "
                "as predicted wrong, and means over these epochs are NaN",
                lost,
                epoch,
            )

    def close(self) -> None:
        """Store the batches that are left."""
        self.save()
        self._background.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()


def _name_and_time() -> tuple[str, str]:
    """Return a new run's own name, and the time."""
    return uuid.uuid4().hex[:12], datetime.now(UTC).isoformat(timespec="microseconds")


def _ids(given: Any) -> NDArray[Any] | Tensor:
    """Return a copy of ids; those on a GPU stay there, so that training does not wait for them."""
    if isinstance(given, Tensor):
        given = given.detach()
    ids = given.clone() if isinstance(given, Tensor) and given.is_cuda else as_ids(given)
    if ids.ndim != 1:
        raise TrakStoreError(f"ids are one for each sample, got shape {tuple(ids.shape)}")
    return ids


def _on_cpu(ids: NDArray[Any] | Tensor) -> NDArray[Any]:
    return as_ids(ids.cpu()) if isinstance(ids, Tensor) else ids

"""Features of data sets that queries name, each computed once."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trakstore.errors import SpecMismatchError
from trakstore.features import Job, featurize_job
from trakstore.features.fingerprint import (
    checkpoint_hash,
    dataset_fingerprint,
    sampled_rows,
    whole_digest,
)
from trakstore.features.wanted_spec import check_job
from trakstore.storage.backends.location import Where
from trakstore.storage.embedded import EmbeddedStore
from trakstore.storage.layout import Epoch
from trakstore.storage.opening import open_store
from trakstore.storage.split import Split
from trakstore.storage.store import FeatureStore

log = logging.getLogger("trakstore")

_SHOWN = 12  # digits of a digest in the name of a split


class KeptFeatures:
    """A store with a split for each data set, found again by the contents of all its samples.

    In a given store, splits that ``featurize`` wrote are found by its fingerprint, which covers all ids
    and 32 samples. For a larger data set, a change of another sample is not noticed, and a warning says
    that such a split is used.

    Parameters
    ----------
    where : path, FeatureStore or zarr store, optional
        Place of the store. By default a temporary folder that is removed with this object, and emptied
        when the model's weights or the kind of features change. A given store refuses features of other
        weights or kinds.
    """

    def __init__(self, where: Where | FeatureStore | None = None) -> None:
        self._given, self._embedded = where, EmbeddedStore(where)
        # Row counts of splits named after their contents, so that none is opened twice to learn it.
        self._rows: dict[str, int] = {}
        self._warned: set[str] = set()

    def computed(
        self, job: Job, sides: Mapping[str, Any], ids: Mapping[str, NDArray[Any]], device: str
    ) -> tuple[FeatureStore, dict[str, str]]:
        """Return the store, and the name of each side's split; missing features are computed.

        Parameters
        ----------
        job : Job
            The job, except for its data sets.
        sides : mapping of str to data set
            Data sets, such as ``"train"`` and ``"test"``.
        ids : mapping of str to array
            Ids of the samples of each data set.
        device : str
            Device on which features are computed.

        Raises
        ------
        SpecMismatchError
            When a given store has another output, projection, parameters or weights than the job.
        """
        store, job = self._opened(job, device)
        names = {
            side: self._name(store, job, f"{side}.{_digest(data, ids[side])}", data, ids[side])
            for side, data in sides.items()
        }
        job = replace(
            job,
            datasets={names[side]: data for side, data in sides.items()},
            ids={names[side]: ids[side].tolist() for side in sides},
        )
        if lacking := _lacking(store, job):
            self._compute(job, lacking, device)
        return open_store(self._embedded.where), names

    def has(self, job: Job, data: Any, ids: NDArray[Any], device: str) -> bool:
        """Tell whether all features of a data set are stored, with the weights of the job."""
        store, job = self._opened(job, device)
        if store is None or not self._any_of_length(store, job.epochs[0], len(ids)):
            return False  # which is known without reading samples
        name = self._name(store, job, f"train.{_digest(data, ids)}", data, ids)
        return not _lacking(store, replace(job, datasets={name: data}))

    def _opened(self, job: Job, device: str) -> tuple[FeatureStore | None, Job]:
        """Open the store if its features are those of the job, which takes the store's precision."""
        store = self._embedded.open()
        if store is None:
            return None, job
        own = replace(job, precision=store.spec.autocast or "float32")
        try:
            check_job(own, store, torch.device(device), "give store= another place")
        except SpecMismatchError:
            # At a place that the user named, features of another kind are the user's own.
            if self._given is not None:
                raise
            self._begin_anew()
            return None, job
        return store, own

    def _any_of_length(self, store: FeatureStore, epoch: Epoch, length: int) -> bool:
        names = store.splits_of(epoch)
        # Splits of others may have gained rows since they were opened.
        unknown = [name for name in names if "." not in name or name not in self._rows]
        if unknown:
            opened = store.open_splits((epoch,), unknown)[epoch]
            self._rows |= {one.name: one.rows for one in opened}
        return length in (self._rows[name] for name in names)

    def _name(
        self, store: FeatureStore | None, job: Job, own: str, data: Any, ids: NDArray[Any]
    ) -> str:
        """Return the name of the split with these samples; if there is none, ``own``."""
        if store is None:
            return own
        there = store.splits_of(job.epochs[0])
        of_digest = own[own.index(".") :]
        for name in there:
            if name.endswith(of_digest):
                return name
        # Splits made here, whose names have a dot, hold other samples.
        foreign = [name for name in there if "." not in name] if self._given is not None else []
        if not foreign:
            return own
        fingerprint = dataset_fingerprint(data, ids)
        for split in store.open_splits(job.epochs[:1], foreign)[job.epochs[0]]:
            if split.spec.dataset == fingerprint:
                self._warn_of(split, len(sampled_rows(data)))
                return split.name
        return own

    def _warn_of(self, split: Split, compared: int) -> None:
        if compared < split.rows and split.name not in self._warned:
            self._warned.add(split.name)
            log.warning(
                "features of %s are used: of its %d samples, %d were compared, and all ids",
                split.name,
                split.rows,
                compared,
            )

    def _compute(self, job: Job, splits: list[str], device: str) -> None:
        asked: dict[str, Any] = {"device": device, "progress": False}
        try:
            featurize_job(job, self._embedded.where, splits=splits, **asked)
        except SpecMismatchError:
            # At a place that the user named, features of other weights are the user's own.
            if self._given is not None:
                raise
            self._begin_anew()
            featurize_job(job, self._embedded.where, **asked)

    def _begin_anew(self) -> None:
        self._embedded = EmbeddedStore()
        self._rows.clear()


def _digest(data: Any, ids: NDArray[Any]) -> str:
    return whole_digest(data, ids)[:_SHOWN]


def _lacking(store: FeatureStore | None, job: Job) -> list[str]:
    """Return the data sets whose features are missing at some epoch, or have other weights."""
    complete = set(job.datasets)
    with job.lent():
        for epoch in job.epochs:
            complete &= set(() if store is None else store.splits_of(epoch))
            if store is None or not complete:
                break  # which is known without loading the weights
            weights = checkpoint_hash(job.load(epoch))
            # Only the needed splits are opened: there may be one for each sample by now.
            complete = {
                split.name
                for split in store.open_splits((epoch,), sorted(complete))[epoch]
                if split.spec.checkpoint == weights and split.complete
            }
    return [name for name in job.datasets if name not in complete]


def positions(data: Any) -> NDArray[np.int64]:
    """Return the positions of all samples, which are their default ids."""
    return np.arange(len(data), dtype=np.int64)

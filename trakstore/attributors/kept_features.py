"""Features of whatever samples are asked about, each computed once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import SpecMismatchError
from trakstore.features import Job, featurize_job
from trakstore.features.fingerprint import checkpoint_hash, dataset_fingerprint, whole_digest
from trakstore.storage.backends.location import Where
from trakstore.storage.embedded import EmbeddedStore
from trakstore.storage.opening import open_store
from trakstore.storage.store import FeatureStore

_SHOWN = 12  # digits of a digest in the name of a split


class KeptFeatures:
    """A store with a split for each data set, which is found again by what its samples hold.

    Parameters
    ----------
    where : path, FeatureStore or zarr store, optional
        Place of the store. By default a temporary folder that goes with this object, and is emptied
        when the model's weights change; a given store refuses other weights.
    """

    def __init__(self, where: Where | FeatureStore | None = None) -> None:
        self._given, self._embedded = where, EmbeddedStore(where)

    def computed(
        self, job: Job, sides: Mapping[str, Any], ids: Mapping[str, NDArray[Any]], device: str
    ) -> tuple[FeatureStore, dict[str, str]]:
        """Return the store, and the name of the split of each side; what lacks is computed.

        Parameters
        ----------
        job : Job
            All but the data sets.
        sides : mapping of str to data set
            Data sets, such as ``"train"`` and ``"test"``.
        ids : mapping of str to array
            Names of the samples of each.
        device : str
            Where features are computed.
        """
        digests = {side: whole_digest(data, ids[side])[:_SHOWN] for side, data in sides.items()}
        names = {
            side: self._name(job, side, data, ids[side], digests[side])
            for side, data in sides.items()
        }
        job = replace(
            job,
            datasets={names[side]: data for side, data in sides.items()},
            ids={names[side]: ids[side].tolist() for side in sides},
        )
        if lacking := self._lacking(job):
            self._compute(job, lacking, device)
        return open_store(self._embedded.where), names

    def has(self, job: Job, data: Any, ids: NDArray[Any]) -> bool:
        """Tell whether all features of a data set are there, with the weights of the job."""
        store = self._embedded.open()
        if store is None or not any(
            store.split(job.epochs[0], name).rows == len(ids)
            for name in store.splits_of(job.epochs[0])
        ):
            return False  # samples need not be read for that
        digest = whole_digest(data, ids)[:_SHOWN]
        name = self._name(job, "train", data, ids, digest)
        return not self._lacking(replace(job, datasets={name: data}))

    def _name(self, job: Job, side: str, data: Any, ids: NDArray[Any], digest: str) -> str:
        """Return the name of the split that has these samples, or will have them."""
        store = self._embedded.open()
        there = store.splits_of(job.epochs[0]) if store else ()
        for name in there:
            if name.endswith(f".{digest}"):
                return name
        if store is not None and self._given is not None:
            # Splits that featurize wrote are told by its fingerprint. Those of here, whose names have a
            # dot, are not: it is of 32 samples, and would take data of which another changed for them.
            fingerprint = dataset_fingerprint(data, ids)
            for name in there:
                if "." not in name and store.split(job.epochs[0], name).spec.dataset == fingerprint:
                    return name
        return f"{side}.{digest}"

    def _lacking(self, job: Job) -> list[str]:
        """Return the data sets of which features lack at some epoch, or are of other weights."""
        store = self._embedded.open()
        if store is None:
            return list(job.datasets)
        complete = set(job.datasets)
        with job.lent():
            for epoch in job.epochs:
                weights = checkpoint_hash(job.load(epoch))
                splits = [store.split(epoch, name) for name in store.splits_of(epoch)]
                complete &= {
                    split.name
                    for split in splits
                    if split.spec.checkpoint == weights and split.status().complete
                }
        return [name for name in job.datasets if name not in complete]

    def _compute(self, job: Job, splits: list[str], device: str) -> None:
        asked: dict[str, Any] = {"device": device, "progress": False}
        try:
            featurize_job(job, self._embedded.where, splits=splits, **asked)
        except SpecMismatchError:
            # In a place that somebody named, features of other weights are somebody's.
            if self._given is not None:
                raise
            self._embedded = EmbeddedStore()
            featurize_job(job, self._embedded.where, **asked)


def positions(data: Any) -> NDArray[np.int64]:
    """Return the positions of all samples, which are their names by default."""
    return np.arange(len(data), dtype=np.int64)

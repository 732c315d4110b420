"""Whether a set-up can be trusted, before anything is concluded from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from trakstore.errors import NotFoundError, TrakStoreError, did_you_mean
from trakstore.evaluation.model_checks import Probe, check_data, check_model
from trakstore.evaluation.store_checks import check_kernel, check_rows
from trakstore.evaluation.verdicts import Check, failing, unless
from trakstore.features.batches import evaluated
from trakstore.features.fingerprint import checkpoint_hash, dataset_fingerprint, dataset_rows
from trakstore.features.job import Job
from trakstore.storage.columns import sample_ids
from trakstore.storage.layout import Epoch
from trakstore.storage.locations import Where
from trakstore.storage.splits import Split
from trakstore.storage.store import FeatureStore, open_store

__all__ = ["check_setup"]

_NARROW = {"float32": 1e-3, "float16": 1e-2}  # relative error of stored rows that is rounding
_REMEDY = "mend the job first; what depends on it was not looked at"


def check_setup(
    job: Job,
    store: Where | FeatureStore,
    *,
    train: str = "train",
    epochs: Sequence[Epoch] | None = None,
    damping: float = 1.0,
    memory_limit: int | str | None = None,
) -> Iterator[Check]:
    """Look for what makes scores wrong without an error.

    The data give the same samples twice; in eval mode nothing is random and samples do not see each
    other; frozen or unused parameters; two gradient engines agree; the projection keeps inner products;
    each stored split is of this data and this checkpoint (hashes, and rows computed again: the
    first, the last and some between, as any worker would), complete, finite, without zeros or
    copies; and the train kernel can be inverted.

    Parameters
    ----------
    job : Job
        What the store was, or is to be, made from. Its model is used on the CPU.
    store : FeatureStore or its place
    train : str
        Split whose kernel is looked at.
    epochs : sequence of epochs, optional
        All of the store when None.
    damping : float
        c of λ = c·tr(K)/n that is meant to be used.
    memory_limit : int or str, optional
        For the kernel.

    Yields
    ------
    Check
        One after the other, as they are made.

    Raises
    ------
    NotFoundError
        When the store has none of the epochs that are asked for.
    """
    opened = open_store(store)
    chosen = list(opened.epochs if epochs is None else epochs)
    for epoch in chosen:
        if epoch not in opened.epochs:
            near = did_you_mean(epoch, opened.epochs)
            raise NotFoundError(f"{opened.location} has no epoch {epoch!r}{near}")
    if not any(train in opened.splits_of(epoch) for epoch in chosen):
        raise NotFoundError(f"no epoch has a split {train!r}{did_you_mean(train, opened.splits)}")
    sound = True
    for check in _job(job, opened, chosen):
        yield check
        sound = sound and check.verdict != "fail"
    for epoch in chosen:
        for name in opened.splits_of(epoch):
            split = opened.split(epoch, name)
            yield from check_rows(split)
            if name in job.datasets:
                yield from _of_this_job(job, split, opened, sound)
        if train in opened.splits_of(epoch) and opened.split(epoch, train).status().complete:
            yield check_kernel(opened, epoch, train, damping, memory_limit)


def _job(job: Job, store: FeatureStore, epochs: Sequence[Epoch]) -> Iterator[Check]:
    data = [check_data(job, split) for split in job.datasets]
    yield from data
    known = [epoch for epoch in epochs if epoch in job.epochs]
    if known:
        job.load(known[-1])
    for check, split in zip(data, job.datasets, strict=True):
        if check.verdict == "pass":
            yield from check_model(job, split, store.spec.projection)
            return
    yield Check("model", "job", "fail", None, "no split whose samples stay", _REMEDY)


def _of_this_job(job: Job, split: Split, store: FeatureStore, sound: bool) -> Iterator[Check]:
    """Whether the rows are of this data set and checkpoint: by hashes, and by computing some again."""
    where = f"{split.name} at epoch {split.epoch}"
    try:
        dataset = job.datasets[split.name]
        ids = sample_ids(job.ids.get(split.name), dataset_rows(dataset))
        same = split.spec.dataset in (None, dataset_fingerprint(dataset, ids))
        same = same and split.spec.rows == len(ids)
    except TrakStoreError as error:
        yield failing("same data", where, error, _REMEDY)
        return
    meaning = "samples of the job; equal to those of the store by their hashes"
    remedy = (
        f"the store has {split.spec.rows} rows of other data: give the job that it was made with"
    )
    yield unless(same, "same data", where, len(ids), meaning, remedy)
    if split.epoch not in job.epochs:
        remedy = f"the job has no epoch {split.epoch!r}: give it this checkpoint"
        yield Check("same checkpoint", where, "warn", None, "not looked at", remedy)
        return
    job.load(split.epoch)
    same = split.spec.checkpoint in (None, checkpoint_hash(job.model))
    remedy = "the job loads other weights for this epoch than the features were made with"
    yield unless(same, "same checkpoint", where, None, "weights equal by their hash", remedy)
    if sound and split.status().complete and split.spec.rows <= len(ids):
        yield _again(job, split, store, where)


def _again(job: Job, split: Split, store: FeatureStore, where: str) -> Check:
    """Some rows, computed now, against the stored ones."""
    rows = np.unique(np.linspace(0, split.spec.rows - 1, 5).astype(int)).tolist()
    parameters = store.spec.parameters
    patterns = job.parameters if parameters is None else parameters.patterns
    with evaluated(job.model, torch.device("cpu")):
        made = Probe.of(replace(job, parameters=patterns), split.name, rows)
        wanted = made.features(store.spec.projection).numpy()
    stored = np.concatenate([split.column("features").read(i, i + 1) for i in rows])
    scale = float(np.linalg.norm(wanted))
    apart = float(np.linalg.norm(stored - wanted)) / scale if scale else 0.0
    limit = 1e-2 if store.spec.keep_bits is not None else _NARROW[store.spec.dtype]
    remedy = "stored features are not those of this model and data: drop the split, featurize again"
    meaning = "relative difference of stored rows, among them the last, from rows computed now"
    return unless(apart < limit, "rows computed again", where, apart, meaning, remedy)

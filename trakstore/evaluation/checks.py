"""Checks of a set-up, before conclusions are drawn from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from trakstore.errors import NotFoundError, TrakStoreError, did_you_mean
from trakstore.evaluation.model_checks import check_data, check_model, features_as_stored
from trakstore.evaluation.store_checks import check_kernel, check_rows
from trakstore.evaluation.verdicts import Check, pass_if
from trakstore.features.blockcheck import checked_rows
from trakstore.features.evaluated import evaluated
from trakstore.features.fingerprint import checkpoint_hash, dataset_rows, hashed_rows
from trakstore.features.job import Job
from trakstore.features.split_samples import SplitSamples
from trakstore.features.token_samples import TokenSamples, stored_run
from trakstore.spec import StoreSpec
from trakstore.spec.rounding import rounding_of
from trakstore.storage import layout
from trakstore.storage.backends.location import Where
from trakstore.storage.columns import sample_ids
from trakstore.storage.layout import Epoch
from trakstore.storage.opening import open_store
from trakstore.storage.sampled_rows import DrawsOrigin, origin_of_draws
from trakstore.storage.selections import as_epochs
from trakstore.storage.split import Split
from trakstore.storage.store import FeatureStore

# The docs have a page about this module, which shows these names.
__all__ = ["check_setup"]

_BLOCKS, _EACH = 4, 2  # number of blocks, and of rows of each, that are computed again
_Data: TypeAlias = "tuple[Check, str | None]"  # check of a split's data, and its fingerprint
_AGAIN = "rows computed again"
_REMEDY = "mend the job first; what depends on it was not looked at"


def check_setup(
    job: Job,
    store: Where | FeatureStore,
    *,
    train: str = "train",
    epochs: Epoch | Sequence[Epoch] | None = None,
    damping: float = 1.0,
    memory_limit: int | str | None = None,
) -> Iterator[Check]:
    """Look for faults that make scores wrong without an error.

    Of the model and the data: reading a sample twice gives the same; in eval mode nothing is random,
    and samples do not see each other; no parameters are frozen or unused by mistake; two gradient
    engines agree; the projection keeps inner products. Of each stored split: it is of this data and
    this checkpoint (by hashes, of data those of 32 spaced samples and all ids; and by computing the
    first, the last and some rows between again, also those of drawn labels and of tokens); it is
    complete and finite, without zeros or copies. And the train kernel can be inverted.

    Parameters
    ----------
    job : Job
        Job from which the store was made, or will be. Its model is used on the CPU, and has its own
        weights again after the last check.
    store : FeatureStore or its place
        Existing store, with some of the job's splits.
    train : str
        Split whose kernel is checked.
    epochs : sequence of epochs, optional
        Epochs to check; all of the store when None.
    damping : float
        c in λ = c·tr(K)/n that is to be used.
    memory_limit : int or str, optional
        Bytes of one process for the kernel; a quarter of the available memory when None.

    Yields
    ------
    Check
        Each check as soon as it is made.

    Raises
    ------
    NotFoundError
        When the store has none of the given epochs.

    Examples
    --------
    >>> from trakstore.features import Job, featurize_job
    >>> job = Job(model, {"train": train, "test": test}, projector=ts.ProjectionSpec("sjlt", dim=8))
    >>> done = featurize_job(job, "memory://checked", progress=False)
    >>> first = next(check_setup(job, "memory://checked"))
    >>> first.name, first.verdict
    ('samples stay', 'pass')
    """
    opened = open_store(store)
    chosen = opened.epochs if epochs is None else as_epochs(epochs)
    for epoch in chosen:
        if epoch not in opened.epochs:
            near = did_you_mean(epoch, opened.epochs)
            raise NotFoundError(f"{opened.location} has no epoch {epoch!r}{near}")
    if not any(train in opened.splits_of(epoch) for epoch in chosen):
        raise NotFoundError(f"no epoch has a split {train!r}{did_you_mean(train, opened.splits)}")
    data = {split: check_data(job, split) for split in job.datasets}
    # Rows are computed again only if the job passed: with dropout on, for example, they could not
    # agree.
    sound = True
    with job.lent():
        for check in _job(job, opened, chosen, data):
            yield check
            sound = sound and check.verdict != "fail"
        for epoch in chosen:
            weights = checkpoint_hash(job.load(epoch)) if epoch in job.epochs else None
            for name in opened.splits_of(epoch):
                split = opened.split(epoch, name)
                for check in _split(job, split, data, weights, opened.spec if sound else None):
                    yield replace(check, epoch=epoch)
            if train in opened.splits_of(epoch) and opened.split(epoch, train).status().complete:
                kernel = check_kernel(opened, epoch, train, damping, memory_limit)
                yield replace(kernel, epoch=epoch)


def _job(
    job: Job, store: FeatureStore, epochs: Sequence[Epoch], data: Mapping[str, _Data]
) -> Iterator[Check]:
    """Check the data, and the model with the weights of its last epoch on the first sound data."""
    yield from (check for check, _ in data.values())
    known = [epoch for epoch in epochs if epoch in job.epochs]
    if known:
        job.load(known[-1])
    for split, (check, _) in data.items():
        if check.verdict == "pass":
            # The projection of any epoch keeps inner products equally well.
            projection = store.spec.projection.at(known[-1] if known else 0)
            yield from check_model(job, split, projection)
            return
    yield Check("model", "job", "fail", None, "no split whose samples stay", _REMEDY)


def _split(
    job: Job,
    split: Split,
    data: Mapping[str, _Data],
    weights: str | None,
    spec: StoreSpec | None,
) -> Iterator[Check]:
    """Check one split; rows are computed again if the store's spec is given."""
    yield from check_rows(split)
    own = layout.own_split(split.name)
    if own not in data:
        return
    if split.name.endswith(layout.TOKENS):
        yield from _tokens(job, split, data[own], weights, spec)
        return
    drawn = origin_of_draws(split.spec.dataset) if own != split.name else None
    yield _same_data(job, split, data[own][1], drawn)
    yield _same_checkpoint(split, weights)
    if spec is None or weights is None or not _comparable(job, split, drawn):
        return
    if drawn is None:
        yield _again(job, split, spec)
    elif spec.autocast is None:
        yield _again(job, split, spec, _samples(job, split, drawn))
    else:
        # If rounding changes which label is drawn, the label is another.
        remedy = "labels that were drawn in lower precision cannot be drawn again to the last one"
        yield Check(_AGAIN, split.name, "warn", None, "not looked at", remedy)


def _tokens(
    job: Job, split: Split, data: _Data, weights: str | None, spec: StoreSpec | None
) -> Iterator[Check]:
    """Check a split of rows of tokens, with the run that the store has, whatever the job asks for."""
    samples = None
    if data[1] is not None and (run := stored_run(split.spec.dataset)):
        try:
            own = replace(job, tokens={layout.own_split(split.name): run})
            samples = TokenSamples.of(own, split.name)
        except TrakStoreError as error:  # the job has no tokens: these belong to another job
            remedy = "give the job that the store was made with"
            yield Check("same data", split.name, "fail", None, str(error), remedy)
            return
    if samples is not None:
        count, rows = len(samples.tokens), len(samples.ids)
        stored = split.spec.dataset
        yield _compared(split, samples.fingerprint, stored, count, rows, "rows of tokens")
    elif data[1] is not None:
        yield Check("same data", split.name, "warn", None, "not looked at", _unhashed("data"))
    else:
        yield _compared(split, None, None, 0, 0)
    yield _same_checkpoint(split, weights)
    if samples is None or spec is None or weights is None:
        return
    if _is_whole(split, len(samples.ids)):
        yield _again(job, split, spec, samples)


def _same_data(job: Job, split: Split, fingerprint: str | None, drawn: DrawsOrigin | None) -> Check:
    """Compare the data by hash; for drawn labels, also the number of draws of each sample."""
    count = dataset_rows(job.datasets[layout.own_split(split.name)])
    if drawn is None:
        return _compared(split, fingerprint, split.spec.dataset, count, count)
    return _compared(split, fingerprint, drawn.dataset, count, count * drawn.draws)


def _compared(
    split: Split,
    fingerprint: str | None,
    stored: str | None,
    samples: int,
    rows: int,
    counted: str = "samples",
) -> Check:
    """Compare the fingerprint of so many samples, and their number of rows, with the store's."""
    name, of = "same data", split.name
    if fingerprint is None:
        return Check(name, of, "fail", None, "samples do not stay", _REMEDY)
    there = split.spec.rows
    remedy = f"the store has {there:,} rows of other data: give the job that it was made with"
    if rows != there:
        meaning = f"{counted} of the job; the store has {there:,}"
        return Check(name, of, "fail", rows, meaning, remedy)
    if stored is None:
        return Check(name, of, "warn", None, "not looked at", _unhashed("data"))
    hashed = f"of {samples:,} samples compared by hash, and all ids"
    equal = fingerprint == stored
    meaning = f"{hashed}: {'equal to' if equal else 'they differ from'} those of the store"
    return pass_if(equal, name, of, len(hashed_rows(samples)), meaning, remedy)


def _same_checkpoint(split: Split, weights: str | None) -> Check:
    name, of, stored = "same checkpoint", split.name, split.spec.checkpoint
    if weights is None:
        remedy = f"the job has no epoch {split.epoch!r}: give it this checkpoint"
        return Check(name, of, "warn", None, "not looked at", remedy)
    if stored is None or stored.startswith("features:"):  # made elsewhere
        return Check(name, of, "warn", None, "not looked at", _unhashed("weights"))
    equal = weights == stored
    remedy = "the job loads other weights for this epoch than the features were made with"
    meaning = f"weights {'equal to' if equal else 'differ from'} those of the store by their hash"
    return pass_if(equal, name, of, None, meaning, remedy)


def _unhashed(what: str) -> str:
    return f"the store has no hash of the {what}: make sure that these are those of the job"


def _comparable(job: Job, split: Split, drawn: DrawsOrigin | None) -> bool:
    """Tell whether a split is complete, and has rows that the job can compute again."""
    own = layout.own_split(split.name)
    if split.dropped or (own != split.name and drawn is None):
        return False
    return _is_whole(split, dataset_rows(job.datasets[own]) * (1 if drawn is None else drawn.draws))


def _is_whole(split: Split, count: int) -> bool:
    """Tell whether a split has all of its rows, one of them good, and at most ``count``."""
    return split.status().complete and len(split.skipped) < split.spec.rows <= count


def _again(
    job: Job, split: Split, spec: StoreSpec, samples: SplitSamples | TokenSamples | None = None
) -> Check:
    """Compare rows of some blocks with ordinary backward passes; the job has the epoch's weights.

    ``samples`` is given if rows are not one for each sample: labels are drawn again as they were for
    the store, by sample, draw and seed.
    """
    # Blocks are spread over the split, with the first and the last: a worker that differed wrote some
    # of them.
    blocks = np.unique(np.linspace(0, split.spec.blocks - 1, _BLOCKS).astype(int)).tolist()
    chosen = [checked_rows(*split.spec.block_range(block), _EACH) for block in blocks]
    # Skipped rows are stored as masked: they have no features to compare.
    rows = np.setdiff1d(np.concatenate(chosen), split.skipped).tolist()
    patterns = job.parameters if spec.parameters is None else spec.parameters.patterns
    with evaluated(job.model, torch.device("cpu")):
        own = replace(job, parameters=patterns)
        given = SplitSamples.of(own, split.name) if samples is None else samples
        wanted = features_as_stored(own, given, rows, split, spec).numpy()
    apart = _apart(split, rows, wanted)
    if isinstance(samples, SplitSamples) and len(rows) > 2:
        # Rounding may decide that one label is drawn differently: the worst row does not count.
        kept = np.argsort(np.linalg.norm(apart, axis=1))[:-1]
        apart, wanted = apart[kept], wanted[kept]
    # Relative to all rows together, since a row with a tiny gradient would be all rounding.
    scale = float(np.linalg.norm(wanted))
    difference = float(np.linalg.norm(apart)) / scale if scale else 0.0
    remedy = "stored features are not those of this model and data: drop the split, featurize again"
    meaning = "relative difference of rows of some blocks from ordinary backward passes"
    near = difference < rounding_of(spec)
    return pass_if(near, _AGAIN, split.name, difference, meaning, remedy)


def _samples(job: Job, split: Split, drawn: DrawsOrigin) -> SplitSamples:
    """Return the samples of a split of drawn labels, drawn as the store's were."""
    name = layout.own_split(split.name)
    dataset = job.datasets[name]
    ids = sample_ids(job.ids.get(name), dataset_rows(dataset))
    return SplitSamples(dataset, ids, drawn.draws, drawn.seed)


def _apart(split: Split, rows: list[int], wanted: NDArray[Any]) -> NDArray[Any]:
    """Return the distance of stored rows from the wanted ones, beyond what 8 bits explain."""
    column = split.column("features")
    apart: NDArray[Any] = np.concatenate([column.read(i, i + 1) for i in rows]) - wanted
    if column.scale is None:
        return apart
    step = np.concatenate([column.scale.read(i, i + 1) for i in rows])
    return np.asarray(np.maximum(np.abs(apart) - step[:, None] / 2, 0))

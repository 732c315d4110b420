"""Narrowed jobs: with gradients of the last layers alone, or of a share of the train samples."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import NotFoundError, TrakStoreError, did_you_mean

if TYPE_CHECKING:
    from trakstore.features import Job
    from trakstore.features.last_layers import LastLayers

TRAIN = "train"  # split from which samples are drawn


def of_last_layers(
    job: Job, count: int, device: str | None, *, to_shard: bool = False
) -> tuple[Job, LastLayers]:
    """Return the job with the parameters of its model's last layers alone, and these layers.

    The model is called once, with the first sample of the first data set; on the CPU if it is
    ``to_shard``, since a single GPU may not hold it.

    Raises
    ------
    TrakStoreError
        When the model is to be sharded, and its parameters have no memory before that.
    """
    import torch

    from trakstore.features.batches import Batches
    from trakstore.features.devices import worker_device
    from trakstore.features.evaluated import evaluated
    from trakstore.features.last_layers import last_layers
    from trakstore.features.outputs import as_output

    unbuilt = any(one.is_meta for one in job.model.parameters())
    if unbuilt and to_shard:
        raise TrakStoreError(
            "--last-layers calls the whole model, of which each rank is to hold a part alone (--fsdp): "
            "name the layers in the job, such as parameters=('head.*',), or give it the module itself"
        )
    where = torch.device("cpu") if to_shard else worker_device(device)
    output = as_output(job.output)
    dataset = next(iter(job.datasets.values()))
    batches = Batches.of(job.model, output, dataset, where, job.collate)
    loaded = job.lent() if unbuilt else nullcontext()
    with loaded, evaluated(job.load(job.epochs[0]) if unbuilt else job.model, where):
        batch = batches.read(0, 1)
        layers = last_layers(job.model, count, lambda: output(job.model, batch))
    return replace(job, parameters=layers.patterns), layers


def of_drawn_samples(job: Job, rate: float, by: str | None, seed: int) -> tuple[Job, bool]:
    """Return the job with the same share of its train samples from each stratum, under their own ids.

    Parameters
    ----------
    job : Job
    rate : float
        Share of the samples, above 0 and at most 1.
    by : {"auto", "none"} or str
        Name of the strata, as in :func:`.loading.stratum`. ``"auto"``: by label, if labels are integers
        and so few that the share includes two of each.
    seed : int
        Seed of the draw.

    Returns
    -------
    Job
        Job with the drawn samples.
    bool
        Whether there are strata.

    Raises
    ------
    NotFoundError
        When the job has no data set of that name.
    TrakStoreError
        When samples have no such stratum, or the rate is out of range.
    """
    from torch.utils.data import Subset

    from trakstore.features.fingerprint import dataset_rows
    from trakstore.features.loading import stratum
    from trakstore.sampling import sample_rows

    if TRAIN not in job.datasets:
        near = did_you_mean(TRAIN, job.datasets)
        raise NotFoundError(f"samples are drawn of the job's data set {TRAIN!r}; it has none{near}")
    whole = job.datasets[TRAIN]
    rows = range(dataset_rows(whole))
    # Every sample is read once, for its stratum.
    if by == "auto":
        strata = _few_labels(whole, rows, rate)
    else:
        strata = None if by == "none" else np.array([stratum(whole[row], by) for row in rows])
    drawn = sample_rows(len(rows), rate, strata=strata, seed=seed).positions.tolist()
    names = job.ids.get(TRAIN, rows)
    drawn_job = replace(
        job,
        datasets={**job.datasets, TRAIN: Subset(whole, drawn)},
        ids={**job.ids, TRAIN: [names[row] for row in drawn]},
    )
    return drawn_job, strata is not None


def _few_labels(dataset: Any, rows: Sequence[int], rate: float) -> NDArray[Any] | None:
    """Return the labels of all samples; None if they cannot serve as strata."""
    from trakstore.features.loading import stratum
    from trakstore.features.reading import read_sample

    labels: list[int] = []
    for row in rows:
        sample = read_sample(dataset, int(row))
        try:
            label = stratum(sample, "label")
        except TrakStoreError:  # samples without labels, or with several numbers for one
            return None
        if not isinstance(label, int | np.integer):
            return None
        labels.append(int(label))
    # At least two of each stratum are drawn: with many strata that would be more than the share.
    return np.array(labels) if 2 * len(set(labels)) <= max(2.0, rate * len(rows)) else None

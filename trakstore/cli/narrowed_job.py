"""Jobs of less than all: gradients of the last layers alone, or of a share of the train samples."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from trakstore.errors import NotFoundError, did_you_mean

if TYPE_CHECKING:
    from trakstore.features import Job
    from trakstore.features.last_layers import LastLayers

TRAIN = "train"  # name of the split that is drawn from


def of_last_layers(job: Job, count: int, device: str | None) -> tuple[Job, LastLayers]:
    """Return the job with the parameters of the layers that its model uses last, and which these are.

    The model is called once, with the first sample of the first data set.
    """
    from trakstore.features.batches import Batches, evaluated
    from trakstore.features.devices import worker_device
    from trakstore.features.last_layers import last_layers
    from trakstore.features.outputs import as_output

    where, output = worker_device(device), as_output(job.output)
    dataset = next(iter(job.datasets.values()))
    batches = Batches.of(job.model, output, dataset, where, job.collate)
    with evaluated(job.model, where):
        batch = batches.read(0, 1)
        layers = last_layers(job.model, count, lambda: output(job.model, batch))
    return replace(job, parameters=layers.patterns), layers


def of_drawn_samples(job: Job, rate: float, by: str | None, seed: int) -> Job:
    """Return the job with a share of its train samples, of each stratum alike, under their own names.

    Raises
    ------
    NotFoundError
        When the job has no data set of that name.
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
    strata = None if by is None else np.array([stratum(whole[row], by) for row in rows])
    drawn = sample_rows(len(rows), rate, strata=strata, seed=seed).positions.tolist()
    names = job.ids.get(TRAIN, rows)
    return replace(
        job,
        datasets={**job.datasets, TRAIN: Subset(whole, drawn)},
        ids={**job.ids, TRAIN: [names[row] for row in drawn]},
    )

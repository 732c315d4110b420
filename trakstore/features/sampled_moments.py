"""Second moments of gradients of some samples whose labels are drawn from the model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch.utils.data import Subset

from trakstore.features.batches import Batches
from trakstore.features.factorised import FactorisedEngine
from trakstore.features.job import Job
from trakstore.features.outputs import ModelOutput
from trakstore.features.parameters import parameter_spec, select_parameters
from trakstore.features.projectors.sign_sums import SignSums
from trakstore.features.second_moments import Moments
from trakstore.features.split_samples import SplitSamples
from trakstore.planning import ranges

__all__ = ["sampled_moments"]

_SAMPLES = 512
_AT_ONCE = 8  # samples that share signs: the more draws of signs, the less noise


def sampled_moments(
    job: Job, output: ModelOutput, split: str, device: torch.device
) -> dict[str, Moments]:
    """Estimate the second moments of loss gradients at the model's present weights.

    The samples are 512 of the split at equal distances, or all. Labels are drawn from the model's own
    predictions, so that the moments are the diagonal of its Fisher matrix.

    Parameters
    ----------
    job : Job
        Its model is in eval mode, on the device.
    output : ModelOutput
        One whose labels can be drawn.
    split : str
        Data set of the job.

    Returns
    -------
    dict of name to Moments
        Of every selected parameter, in model order.
    """
    selected = select_parameters(job.model, job.parameters)
    sums = SignSums(parameter_spec(selected, job.parameters))
    engine = FactorisedEngine(job.model, output, selected, sums)
    samples = SplitSamples.of(job, split)
    labels = replace(samples, draws=1).labels(job.model, output)
    assert labels is not None
    batches = Batches.of(job.model, output, samples.given, device, job.collate)
    count = min(len(samples.ids), _SAMPLES)
    chosen = np.unique(np.linspace(0, len(samples.ids) - 1, count).astype(np.int64))
    total = torch.zeros(sums.dim, dtype=torch.float64)
    for draw, (start, stop) in enumerate(ranges(len(chosen), min(_AT_ONCE, job.batch_size))):
        rows, sums.draw = chosen[start:stop], draw
        subset = Subset(samples.given, rows.tolist())
        batch = replace(batches, dataset=subset).read(0, len(rows))
        features, outputs = engine.rows(labels.labelled(rows, batch))
        # A loss gradient is -q times that of the output.
        gradients = features * outputs.out_to_loss.to(features)[:, None]
        total += gradients.to(torch.float64).square().sum(0).cpu()
    mean = total / len(chosen)
    return {name: Moments(*sums.moments(name, mean)) for name in sums.shapes}

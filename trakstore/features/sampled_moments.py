"""Second moments of gradients of some samples whose labels are drawn from the model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch.utils.data import Subset

from trakstore.errors import NumericsError
from trakstore.features.batches import Batches
from trakstore.features.factorised import FactorisedEngine
from trakstore.features.fitness import explained
from trakstore.features.job import Job
from trakstore.features.outputs import ModelOutput
from trakstore.features.parameters import parameter_spec, select_parameters
from trakstore.features.plain import copied
from trakstore.features.projectors.sign_sums import SignSums
from trakstore.features.second_moments import Moments
from trakstore.features.sharding import WHOLE, Sharding
from trakstore.features.split_samples import SplitSamples
from trakstore.planning import ranges

__all__ = ["sampled_moments"]

_SAMPLES = 512
_AT_ONCE = 8  # samples that share signs: the more draws of signs, the less noise


def sampled_moments(
    job: Job,
    output: ModelOutput,
    split: str,
    device: torch.device,
    sharding: Sharding = WHOLE,
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
    sharding : Sharding
        Spread of the model over ranks, which all compute the same here.

    Returns
    -------
    dict of name to Moments
        Of every selected parameter, in model order.

    Raises
    ------
    NumericsError
        When no sample has a finite gradient.
    """
    selected = select_parameters(job.model, job.parameters)
    sums = SignSums(parameter_spec(selected, job.parameters))
    engine = FactorisedEngine(job.model, output, selected, sums, sharding)
    samples = SplitSamples.of(job, split)
    labels = replace(samples, draws=1).labels(job.model, output)
    assert labels is not None
    batches = Batches.of(job.model, output, samples.given, device, job.collate)
    count = min(len(samples.ids), _SAMPLES)
    chosen = np.unique(np.linspace(0, len(samples.ids) - 1, count).astype(np.int64))
    total, used = torch.zeros(sums.dim, dtype=torch.float64), 0
    for draw, (start, stop) in enumerate(ranges(len(chosen), _AT_ONCE)):
        rows, sums.draw = chosen[start:stop], draw
        subset = Subset(samples.given, rows.tolist())
        batch = replace(batches, dataset=subset).read(0, len(rows))
        with explained(job.model, output, batch):
            if not draw:
                output.check(job.model, copied(batch))
            features, outputs = engine.rows(labels.labelled(rows, batch))
        # A loss gradient is -q times that of the output.
        gradients = features * outputs.out_to_loss.to(features)[:, None]
        # Rows that are not finite are refused, or skipped, where they are stored.
        gradients = gradients[gradients.isfinite().all(1)]
        total += gradients.to(torch.float64).square().sum(0).cpu()
        used += len(gradients)
    if not used:
        raise NumericsError(
            f"none of the {len(chosen)} samples that the scale is estimated from has a finite gradient"
        )
    mean = total / used
    return {name: Moments(*sums.moments(name, mean)) for name in sums.shapes}

"""Second moments of gradients of some samples whose labels are drawn from the model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from trakstore.errors import MemoryLimitError, NumericsError
from trakstore.features.batch_reader import BatchReader
from trakstore.features.batches import Batches
from trakstore.features.factorised import FactorisedEngine
from trakstore.features.fitness import explained
from trakstore.features.footprint import peak_bytes, tensor_bytes
from trakstore.features.gradients import FeatureRows, batch_size, cut
from trakstore.features.job import Job
from trakstore.features.outputs import ModelOutput
from trakstore.features.padded_rows import WatchedReader
from trakstore.features.parameters import parameter_spec, select_parameters
from trakstore.features.plain import copied
from trakstore.features.projectors.sign_sums import SignSums
from trakstore.features.second_moments import Moments
from trakstore.features.sharding import WHOLE, Sharding
from trakstore.features.split_samples import SplitSamples
from trakstore.features.wording import first_line
from trakstore.planning import byte_count, ranges, window_rows

__all__ = ["sampled_moments"]

log = logging.getLogger("trakstore")

_SAMPLES = 512
_AT_ONCE = 8  # samples that share random signs: more groups average out more of the signs' noise


def sampled_moments(
    job: Job,
    output: ModelOutput,
    split: str,
    device: torch.device,
    sharding: Sharding = WHOLE,
) -> dict[str, Moments]:
    """Estimate the second moments of loss gradients at the model's present weights.

    512 samples of the split are used, at equal distances, or all. Labels are drawn from the model's own
    predictions, so that the moments are the diagonal of its Fisher matrix.

    Parameters
    ----------
    job : Job
        Job whose model is in eval mode, on the device.
    output : ModelOutput
        Output whose labels can be drawn.
    split : str
        Data set of the job.
    sharding : Sharding
        Spread of the model over ranks, all of which compute the same moments.

    Returns
    -------
    dict of name to Moments
        Moments of every selected parameter, in model order.

    Raises
    ------
    NumericsError
        When no sample has a finite gradient.
    MemoryLimitError
        When not even one sample fits the job's memory limit, or memory does not suffice for one.
    """
    selected = select_parameters(job.model, job.parameters)
    sums = SignSums(parameter_spec(selected, job.parameters))
    engine = FactorisedEngine(job.model, output, selected, sums, sharding)
    samples = SplitSamples.of(job, split)
    labels = replace(samples, draws=1).labels(job.model, output, sharding)
    assert labels is not None
    batches = Batches.of(job.model, output, samples.given, device, job.collate, samples.given_ids)
    count = min(len(samples.ids), _SAMPLES)
    chosen = np.unique(np.linspace(0, len(samples.ids) - 1, count).astype(np.int64))
    total, used = torch.zeros(sums.dim, dtype=torch.float64), 0
    limit = None if job.memory_limit is None else byte_count(job.memory_limit)
    within = _Within(engine, limit)
    groups = [chosen[start:stop] for start, stop in ranges(len(chosen), _AT_ONCE)]
    where = f"scale of {split}"
    reader = WatchedReader(BatchReader(batches, _AT_ONCE), engine, labels, where)
    first = batches.picked(groups[0][:2].tolist())
    with explained(job.model, output, first):
        output.check(job.model, copied(first))
    for draw, rows in enumerate(groups):
        sums.draw = draw
        for read in reader.picked(rows):
            with explained(job.model, output, read.batch):
                within.measure(read.batch)
                labels.forget(within.at_once)
                parts = within.parts(read.batch, partial(labels.labelled, read.rows))
                for part, own in parts:
                    features, outputs = labels.scaled(part, own)
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


@dataclass
class _Within:
    """Samples whose gradients are computed at once: fewer where memory is short, as for blocks.

    A whole group of samples shares its signs, so that the number computed at once changes the sums by
    rounding alone.

    Attributes
    ----------
    engine : FactorisedEngine
    limit : int or None
        Bytes beside the model.
    at_once : int
    measured : int
        Bytes of the largest sample whose need of memory was counted.
    """

    engine: FactorisedEngine
    limit: int | None
    at_once: int = _AT_ONCE
    measured: int = 0

    def measure(self, batch: Any) -> None:
        """Count what one and two of these samples need, unless larger ones were counted before."""
        one = cut(batch, 0, 1)
        if self.limit is None or tensor_bytes(one) <= self.measured:
            return
        self.measured, count = tensor_bytes(one), batch_size(batch)
        # A first call prepares what later ones share: it must not be counted.
        self.engine.rows(one)
        alone = peak_bytes(lambda: self.engine.rows(one))
        both = cut(batch, 0, 2)
        each = max(1, peak_bytes(lambda: self.engine.rows(both)) - alone)
        # Memory that does not grow with the samples may be buffers of a thread, counted here for one.
        buffers = torch.get_num_threads() * max(0, alone - each)
        # Held besides: the sums, and the batch of samples that share signs.
        held = 8 * self.engine.projector.dim + tensor_bytes(batch)
        what = "estimating second moments of gradients (scale='samples') from one sample at a time"
        fixed = buffers + held + self.engine.gradient_bytes
        self.at_once = min(self.at_once, window_rows(count, each, fixed, self.limit, what))

    def parts(
        self, batch: Any, labelled: Callable[[Any], Any]
    ) -> Iterator[tuple[Any, FeatureRows]]:
        """Yield some samples of a batch at once, with drawn labels, and their rows."""
        drawn, done, size = None, 0, batch_size(batch)
        while done < size:
            most = min(self.at_once, size - done)
            try:
                drawn = labelled(batch) if drawn is None else drawn
                part = cut(drawn, done, done + most)
                yield part, self.engine.rows(part)
                done += most
            except torch.OutOfMemoryError as error:
                if most == 1:
                    raise MemoryLimitError(
                        f"memory does not suffice for the gradient of one sample "
                        f"({first_line(error)}); choose parameters=, shorter samples or "
                        f"autocast='bfloat16'"
                    ) from error
                self.at_once = most // 2
                if torch.cuda.is_initialized():
                    torch.cuda.empty_cache()
                log.warning(
                    "memory did not suffice: going on with %d samples at once", self.at_once
                )

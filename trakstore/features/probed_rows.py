"""Rows of a split: what computes them, tried on the first samples before anything is written."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from trakstore.errors import TrakStoreError
from trakstore.features.activations import NamedActivations
from trakstore.features.background import ReadAhead
from trakstore.features.batch_reader import BatchReader
from trakstore.features.batches import Batches
from trakstore.features.blamed_samples import CheckedBatches, need_forms
from trakstore.features.block_rows import Columns, RowComputer
from trakstore.features.devices import check_determinism
from trakstore.features.factorised import FactorisedEngine
from trakstore.features.fingerprint import sampled_rows
from trakstore.features.first_samples import first_outputs, first_samples
from trakstore.features.fitness import explained
from trakstore.features.job import Job
from trakstore.features.outputs import ModelOutput
from trakstore.features.preparation import Stopwatch
from trakstore.features.sharding import Sharding
from trakstore.features.sorted_batches import POOL
from trakstore.features.split_samples import SplitSamples
from trakstore.features.token_samples import TokenSamples
from trakstore.features.watch import WeightWatch, blaming_changes
from trakstore.planning import byte_count
from trakstore.spec import SplitSpec, StoreSpec
from trakstore.storage import layout
from trakstore.storage.creation import spec_shape

__all__ = ["probed_rows", "within_memory"]

_USED = 0.9  # share of a GPU's free memory that is used
_REPEATED = 8  # rows that are collated twice, to be compared


def probed_rows(
    job: Job,
    samples: SplitSamples | TokenSamples,
    where: str,
    device: torch.device,
    engine: FactorisedEngine,
    output: ModelOutput,
    spec: StoreSpec,
    watch: WeightWatch,
    clock: Stopwatch,
    sharding: Sharding,
) -> tuple[RowComputer, Columns, Batches]:
    """Make the computer of a split's rows, and try it on the first samples.

    Parameters
    ----------
    job : Job
    samples : SplitSamples or TokenSamples
    where : str
        Name of the split, for messages.
    device : torch.device
    engine : FactorisedEngine
    output : ModelOutput
    spec : StoreSpec
    watch : WeightWatch
        Watch over the model, which may not have made a pass yet.
    clock : Stopwatch
    sharding : Sharding

    Returns
    -------
    RowComputer
    dict of str to ndarray
        Columns of the first samples.
    Batches
        Reader of batches from the samples.
    """
    if job.activations and engine.tensor_parallel:
        raise TrakStoreError(
            "activations= of a model whose layers are divided between ranks are parts, and are not "
            "stored: leave them out, or shard it without tensor parallel"
        )
    model, ids = job.model, samples.ids
    batches = Batches.of(model, output, samples.dataset, device, job.collate, ids)
    batches.need_repeatable(min(len(ids), _REPEATED))
    probed, first, classes = first_samples(job, output, batches, len(ids))
    # Outputs of this sample after later passes are compared with these.
    with explained(model, output, first):
        watch.asks(partial(first_outputs, model, output, first))
    check_determinism(device, partial(engine.run_as_training, first))
    clock.lap("passes")
    computer = _computer(
        job, samples, where, engine, output, spec, sharding, batches, first, classes
    )
    with explained(model, output, first), blaming_changes(watch):
        columns = computer.columns(*probed)
    columns.pop(layout.SKIPPED, None)
    # Every run computes these samples first, and is as careful from then on: what they tell makes no
    # block doubted that another run wrote.
    computer.doubted = ""
    watch.check(surely=True)
    if engine.autocast and job.precision != "bfloat16":
        raise TrakStoreError(
            "the model turns on autocast in its own forward, so that its features are not of its "
            "parameters' precision; turn it off there, or give autocast='bfloat16', which the store "
            "tells of"
        )
    return computer, columns, batches


def _computer(
    job: Job,
    samples: SplitSamples | TokenSamples,
    where: str,
    engine: FactorisedEngine,
    output: ModelOutput,
    spec: StoreSpec,
    sharding: Sharding,
    batches: Batches,
    first: Any,
    classes: int | None,
) -> RowComputer:
    """Make the computer of the rows; ``first`` is a batch of the first samples, already checked."""
    model, ids, each = job.model, samples.ids, samples.each
    # A batch holds all draws of its samples, so that one forward pass can serve all of them.
    size = min(job.batch_size * each, len(ids))
    some = samples.first_rows(sampled_rows(samples.given))
    if engine.whole:
        need_forms(batches, model, output, some)
    uneven = batches.uneven(some) if size < len(ids) else None
    source = BatchReader(batches, size, by_length=uneven is not None, each=each)
    checked = partial(CheckedBatches, batches=batches, model=model, output=output, first=first)
    return RowComputer(
        engine,
        NamedActivations(model, output, job.activations),
        output,
        checked(source.read) if engine.whole else ReadAhead(source.read),
        ids,
        where,
        spec,
        classes,
        batch_size=size,
        pool=size if uneven is None else POOL * size,
        measured=uneven[:2] if uneven else tuple(range(min(2, len(ids)))),
        shortest=uneven[-2:] if uneven else (),
        at_once=size,
        reader=source,
        check=job.check,
        skip_bad_rows=job.skip_bad_rows,
        labels=samples.labels(model, output, sharding),
    )


def within_memory(
    rows: RowComputer, job: Job, wanted: SplitSpec, device: torch.device, sharding: Sharding
) -> RowComputer:
    """Take as many samples at once as the job's limit, or else a GPU's free memory, allows."""
    rows = _within_own_memory(rows, job, wanted, device)
    # Ranks that compute the same samples compute as many at once as fit on each of them.
    fitting = sharding.of_same_samples((rows.at_once, rows.pool, rows.need))
    at_once, pool, need = min(fitting, key=lambda one: one[:2])
    return replace(rows, at_once=at_once, pool=pool, need=need)


def _within_own_memory(
    rows: RowComputer, job: Job, wanted: SplitSpec, device: torch.device
) -> RowComputer:
    if job.memory_limit is not None:
        shape = spec_shape(wanted, rows.spec.dtype, rows.least_block)
        numbers = wanted.dim + sum(width for _, width in wanted.widths)
        block_bytes = min(shape.block_rows, wanted.rows) * numbers * 4  # of float32, before storing
        return rows.within(byte_count(job.memory_limit), wanted.rows, block_bytes)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return rows.fitting(int(_USED * torch.cuda.mem_get_info(device)[0]))
    return rows

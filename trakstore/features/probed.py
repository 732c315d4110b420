"""Rows of a split: what computes them is tried on its first samples before anything is written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch

from trakstore.errors import NumericsError, TrakStoreError
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
from trakstore.features.watch import WeightWatch
from trakstore.spec import StoreSpec
from trakstore.storage import layout

__all__ = ["blaming_changes", "probed"]

_REPEATED = 8  # rows that a collator is given twice


@contextmanager
def blaming_changes(watch: WeightWatch) -> Iterator[None]:
    """Raise that the model changed, if it did, in place of an error about rows that are wrong."""
    try:
        yield
    except NumericsError:
        watch.check(surely=True)
        raise


def probed(
    job: Job,
    epoch: int | str,
    split: str,
    samples: SplitSamples | TokenSamples,
    device: torch.device,
    engine: FactorisedEngine,
    output: ModelOutput,
    spec: StoreSpec,
    watch: WeightWatch,
    clock: Stopwatch,
    sharding: Sharding,
) -> tuple[RowComputer, Columns, Batches]:
    """Make what computes the rows, and the columns of the first samples, before anything is written."""
    dataset, ids, model = samples.dataset, samples.ids, job.model
    if job.activations and engine.tensor_parallel:
        raise TrakStoreError(
            "activations= of a model whose layers are divided between ranks are parts, and are not "
            "stored: leave them out, or shard it without tensor parallel"
        )
    batches = Batches.of(model, output, dataset, device, job.collate, ids)
    batches.need_repeatable(min(len(ids), _REPEATED))
    some_first, first, classes = first_samples(job, output, batches, len(ids))
    # Later outputs of this sample are compared with these.
    with explained(model, output, first):
        watch.asks(partial(first_outputs, model, output, first))
    check_determinism(device, partial(engine.run_as_training, first))
    clock.lap("passes")
    # A batch holds all draws of its samples, so that one forward pass can serve them.
    each = samples.each
    size = min(job.batch_size * each, len(ids))
    some = samples.first_rows(sampled_rows(samples.given))
    if engine.whole:
        need_forms(batches, model, output, some)
    uneven = batches.uneven(some) if size < len(ids) else None
    source = BatchReader(batches, size, by_length=uneven is not None, each=each)
    checked = partial(CheckedBatches, batches=batches, model=model, output=output, first=first)
    ahead = checked(source.read) if engine.whole else ReadAhead(source.read)
    computer = RowComputer(
        engine,
        NamedActivations(model, output, job.activations),
        output,
        ahead,
        ids,
        f"{split} at epoch {epoch}",
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
    with explained(model, output, first), blaming_changes(watch):
        columns = computer.columns(*some_first)
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

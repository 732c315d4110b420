"""One split at one epoch, ready to be computed block by block."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch

from trakstore.errors import NumericsError, TrakStoreError
from trakstore.features.activations import NamedActivations
from trakstore.features.added_samples import append_samples
from trakstore.features.background import OneBehind, ReadAhead
from trakstore.features.batch_reader import BatchReader
from trakstore.features.batches import Batches
from trakstore.features.blamed_samples import CheckedBatches, blaming_samples, need_forms
from trakstore.features.block_rows import Columns, RowComputer
from trakstore.features.derived_splits import need_same_loss_scale
from trakstore.features.devices import check_determinism
from trakstore.features.factorised import FactorisedEngine
from trakstore.features.fingerprint import sampled_rows
from trakstore.features.first_samples import first_outputs, first_samples
from trakstore.features.fitness import explained
from trakstore.features.job import Job
from trakstore.features.model_settings import ModelSettings, need_same_settings
from trakstore.features.outputs import ModelOutput
from trakstore.features.parameters import parameter_spec, select_parameters
from trakstore.features.preparation import Preparation, Stopwatch
from trakstore.features.projectors import make_projector
from trakstore.features.scale_choice import ChosenScale, scale_of_store
from trakstore.features.sharding import WHOLE, Sharding
from trakstore.features.sorted_batches import POOL
from trakstore.features.spent import Featurized, Spent
from trakstore.features.split_samples import SplitSamples
from trakstore.features.streamed import Streamed
from trakstore.features.token_samples import TokenSamples, samples_of
from trakstore.features.wanted_spec import output_on, wanted_spec
from trakstore.features.watch import WeightWatch
from trakstore.planning import byte_count
from trakstore.spec import SplitSpec, StoreSpec, check_equal
from trakstore.storage import layout
from trakstore.storage.backends.location import Where
from trakstore.storage.columns import column_dtype
from trakstore.storage.creation import spec_shape
from trakstore.storage.opening import find_store, location_of, open_store
from trakstore.storage.store import FeatureStore
from trakstore.storage.tables.scale_factors import write_factors
from trakstore.storage.writer import BlockWriter

__all__ = ["SplitTask"]

Blame: TypeAlias = "Callable[[range], AbstractContextManager[None]]"

_USED = 0.9  # of what is free on a GPU
_REPEATED = 8  # rows that a collator is given twice


@dataclass
class SplitTask:
    """A split at an epoch, with all that computes its rows and writes its blocks.

    Blocks are written in the background, one behind; leave it through ``with``.
    """

    rows: RowComputer
    writer: BlockWriter
    watch: WeightWatch
    blame: Blame
    sharding: Sharding = WHOLE
    prepared: Preparation = field(default_factory=Preparation)
    background: OneBehind = field(default_factory=OneBehind)
    rows_written: int = 0
    rows_twice: int = 0  # of those, committed by another worker since they were begun
    spent: Spent = field(default_factory=Spent)
    _seconds: list[float] = field(default_factory=list)
    _blocks: list[int] = field(default_factory=list)
    _computed: float = 0.0  # time at which the columns of the last block were there

    @classmethod
    def prepare(
        cls,
        job: Job,
        store: Where | FeatureStore,
        epoch: int | str,
        split: str,
        device: torch.device,
        scale: ChosenScale | None = None,
        sharding: Sharding = WHOLE,
        say: Callable[[str], None] | None = None,
    ) -> SplitTask:
        """Check that everything fits together, then open the split, which may be new.

        The model is in eval mode, on the device, with the weights of the epoch. A store that is made
        new has this ``scale``. Ranks of a sharded model prepare a split at once. ``say`` is told of
        each part of the work as it begins.
        """
        clock = Stopwatch(say)
        selected = select_parameters(job.model, job.parameters)
        sharding.meet()  # a rank that could not load its weights says so here
        watch = WeightWatch(job.model)
        settings = ModelSettings(job.model, divided=sharding.tensor_parallel)
        clock.lap("weights")
        with ExitStack() as undo:
            undo.callback(watch.give_back)
            samples = samples_of(job, split)
            layout.split_path(epoch, split)  # refuses bad names
            fingerprint = samples.fingerprint
            clock.lap("samples")
            output = output_on(job, device)
            parameters = parameter_spec(selected, job.parameters)
            # One decision of all ranks: to scale, and what to compare with, follow from it.
            there = find_store(store)
            is_there = there is not None
            if sharding.agreed(lambda: is_there) != is_there:
                there = None if is_there else open_store(store)
            scale = scale if there is None else scale_of_store(there, job, parameters)
            spec = wanted_spec(job, there, output, parameters, scale)
            if there is not None:
                check_equal(there.spec, spec, str(there.location))
                need_same_loss_scale(there, epoch, split, samples.loss_scale(output))
            projector = make_projector(spec.projection.at(epoch), parameters)
            if scale is not None:
                projector = scale.scaled(projector)
            engine = FactorisedEngine(job.model, output, selected, projector, sharding)
            rows, probe, batches = _probed(
                job, epoch, split, samples, device, engine, output, spec, watch, clock, sharding
            )
            blame = partial(blaming_samples, batches, job.model, output, alone=sharding.whole)
            wanted = SplitSpec(
                len(samples.ids),
                projector.dim,
                tuple(sorted((name, column_dtype(array)) for name, array in probe.items())),
                checkpoint=watch.hash,
                dataset=fingerprint,
                learning_rate=job.learning_rates.get(epoch),
                keep_bits=spec.keep_bits,
                widths=tuple((name, probe[name].shape[1]) for name in rows.activations.columns),
                block_rows=job.block_rows or 1,
                settings=settings.unchanged(watch.put_back),
                loss_scale=samples.loss_scale(output),
            )
            if there is not None:
                need_same_settings(there, epoch, watch.hash, wanted.settings)
            clock.lap("checks")
            rows = _within_memory(rows, job, wanted, device)
            # Ranks that compute the same samples compute as many of them at once: as many as fit on
            # each of them.
            fitting = sharding.of_same_samples((rows.at_once, rows.pool, rows.need))
            at_once, pool, need = min(fitting, key=lambda one: one[:2])
            rows = replace(rows, at_once=at_once, pool=pool, need=need)
            clock.lap("memory")
            if scale is not None:
                # The spec names the factors: they are there before it.
                write_factors(location_of(store, create=True), scale.factors, scale.spec.digest)
            opened = FeatureStore.of_spec(store, spec)
            if job.append:
                append_samples(opened, epoch, split, wanted, rows, samples, blame)
                watch.check(surely=True)
            made = opened.create_split(epoch, split, wanted, batch_rows=rows.least_block)
            if isinstance(given := samples.given, Streamed):
                # Rows of a block are compared at its end, while the first of the next one are read.
                held = made.spec.block_rows + 2 * rows.pool
                given.held = max(given.held, -(-held // samples.each))
            clock.lap("store")
            task = cls(rows, BlockWriter(made), watch, blame, sharding, clock.measured)
            undo.pop_all()  # from here on the end of the task gives the weights back
            return task

    def write(self, block: int, then: int | None = None) -> None:
        """Compute a block, and commit it while the next one is computed; see :meth:`wait`.

        The first samples of the block that comes ``then`` are read meanwhile.
        """
        began, waited = time.monotonic(), self.rows.batches.waited
        start, stop = self.writer.spec.block_range(block)
        following = None if then is None else self.writer.spec.block_range(then)
        with _blaming_changes(self.watch), self.blame(range(start, stop)):
            finish = self.rows.begin(start, stop, following)
        reading = self.rows.batches.waited - waited
        self.spent += Spent(reading=reading, computing=time.monotonic() - began - reading)
        self.wait()
        self.watch.check()
        self.background.submit(lambda: self._store(block, finish))
        self._seconds.append(time.monotonic() - began)
        self.rows_written += stop - start
        while self.rows.doubted:
            self._write_again()
        self._blocks.append(block)

    def _write_again(self) -> None:
        """Compute the blocks before one that was wrong once more, and write them again."""
        generic = self.rows.doubted == "engine"
        self.rows.doubted = ""
        for block in self._blocks:
            with _blaming_changes(self.watch):
                finish = self.rows.begin(*self.writer.spec.block_range(block), generic=generic)
            self.wait()
            if self.sharding.writes:
                self.writer.withdraw(block)
            self.background.submit(partial(self._store, block, finish))

    def is_written(self, block: int) -> bool:
        """Tell whether a block is committed, by whichever worker."""
        return self.sharding.same(self.writer.is_written(block))

    def missing(self) -> list[int]:
        """List the blocks that are not committed; ranks of a sharded model ask at once."""
        return self.sharding.agreed(self.writer.split.missing_blocks)

    def _store(self, block: int, finish: Callable[[], Columns]) -> None:
        columns = finish()
        self._computed = time.monotonic()
        if self.sharding.writes:
            twice = self.writer.is_written(block)
            self.writer.write(block, columns)
            start, stop = self.writer.spec.block_range(block)
            self.rows_twice += stop - start if twice else 0

    def wait(self) -> None:
        """Wait until all blocks are committed; raise what went wrong in that."""
        began = time.monotonic()
        self.background.wait()
        ended = time.monotonic()
        # The background waits for a GPU first, and writes after that.
        computed = min(max(began, self._computed), ended)
        self.spent += Spent(computing=computed - began, writing=ended - computed)

    def __enter__(self) -> SplitTask:
        return self

    def __exit__(self, *exception: Any) -> None:
        try:
            self.background.__exit__(*exception)
            if exception[0] is None:
                if self.rows_written:
                    self.watch.check(surely=True)
                # A rank that wrote nothing takes part in the passes by which others check.
                self.sharding.finish()
        finally:
            self.watch.give_back()

    @property
    def blocks_written(self) -> int:
        """Blocks that this task computed and committed."""
        return len(self._seconds)

    def since(self, rows: int, blocks: int, twice: int, spent: Spent, seconds: float) -> Featurized:
        """Sum up the last ``seconds``, before which there were so many rows and blocks.

        Rows that another worker committed meanwhile count as ``repeated``.
        """
        done, now = self.rows_written - rows, self.spent - spent
        now = replace(now, helping=max(0.0, seconds - now.total))
        if not self.sharding.writes:
            return Featurized(0, 0, seconds, spent=now)
        size = done * self.writer.split.row_bytes
        again = self.rows_twice - twice
        return Featurized(done, self.blocks_written - blocks, seconds, size, now, repeated=again)

    @property
    def seconds_per_block(self) -> float:
        """Median time that a block took here; before the first, the time that preparing took."""
        # A worker that has no block of its own would else do at once what another has just begun.
        return float(np.median(self._seconds)) if self._seconds else self.prepared.total


def _probed(
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
    probed, first, classes = first_samples(job, output, batches, len(ids))
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
    with explained(model, output, first), _blaming_changes(watch):
        columns = computer.columns(*probed)
    columns.pop(layout.SKIPPED, None)
    watch.check(surely=True)
    if engine.autocast and job.precision != "bfloat16":
        raise TrakStoreError(
            "the model turns on autocast in its own forward, so that its features are not of its "
            "parameters' precision; turn it off there, or give autocast='bfloat16', which the store "
            "tells of"
        )
    return computer, columns, batches


def _within_memory(
    rows: RowComputer, job: Job, wanted: SplitSpec, device: torch.device
) -> RowComputer:
    """Take as many samples at once as the job's limit allows, or a GPU's free memory suggests."""
    if job.memory_limit is not None:
        shape = spec_shape(wanted, rows.spec.dtype, rows.least_block)
        numbers = wanted.dim + sum(width for _, width in wanted.widths)
        block_bytes = min(shape.block_rows, wanted.rows) * numbers * 4  # of float32, before storing
        return rows.within(byte_count(job.memory_limit), wanted.rows, block_bytes)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return rows.fitting(int(_USED * torch.cuda.mem_get_info(device)[0]))
    return rows


@contextmanager
def _blaming_changes(watch: WeightWatch) -> Iterator[None]:
    """Raise that the model changed, if it did, in place of an error about rows that are wrong."""
    try:
        yield
    except NumericsError:
        watch.check(surely=True)
        raise

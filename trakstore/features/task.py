"""One split at one epoch, ready to be computed block by block."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch

from trakstore.errors import NumericsError
from trakstore.features.added_samples import append_samples
from trakstore.features.background import OneBehind
from trakstore.features.blamed_samples import (
    blaming_samples,
)
from trakstore.features.block_rows import Columns, RowComputer
from trakstore.features.derived_splits import need_same_loss_scale
from trakstore.features.factorised import FactorisedEngine
from trakstore.features.job import Job
from trakstore.features.model_settings import ModelSettings, need_same_settings
from trakstore.features.parameters import parameter_spec, select_parameters
from trakstore.features.preparation import Preparation, Stopwatch
from trakstore.features.probed_rows import probed_rows, within_memory
from trakstore.features.projectors import make_projector
from trakstore.features.scale_choice import ChosenScale, scale_of_store
from trakstore.features.sharding import WHOLE, Sharding
from trakstore.features.spent import Featurized, Spent
from trakstore.features.streamed import Streamed
from trakstore.features.token_samples import samples_of
from trakstore.features.wanted_spec import output_on, wanted_spec
from trakstore.features.watch import WeightWatch, blaming_changes
from trakstore.features.wording import made_anew
from trakstore.spec import Doubt, Settings, SplitSpec, check_equal
from trakstore.storage import layout
from trakstore.storage.backends.location import Where
from trakstore.storage.columns import column_dtype
from trakstore.storage.growth import finish_withdrawal, withdraw_rows
from trakstore.storage.opening import find_store, location_of, open_store
from trakstore.storage.store import FeatureStore
from trakstore.storage.tables.scale_factors import write_factors
from trakstore.storage.writer import BlockWriter, WithdrawnError

__all__ = ["SplitTask"]

log = logging.getLogger("trakstore")

Blame: TypeAlias = "Callable[[range], AbstractContextManager[None]]"


@dataclass
class SplitTask:
    """A split at an epoch, with the parts that compute its rows and write its blocks.

    A block is written in the background while the next is computed; leave the task through ``with``.
    """

    rows: RowComputer
    writer: BlockWriter
    watch: WeightWatch
    blame: Blame
    sharding: Sharding = WHOLE
    prepared: Preparation = field(default_factory=Preparation)
    background: OneBehind = field(default_factory=OneBehind)
    # What was added behind the rows of a split that was complete, before the first block.
    added: Featurized = field(default_factory=lambda: Featurized(0, 0, 0.0))
    rows_written: int = 0
    # Those that another worker committed or withdrew while they were computed here.
    rows_twice: int = 0
    spent: Spent = field(default_factory=Spent)
    _seconds: list[float] = field(default_factory=list)
    careful: bool = False  # whether every worker compares all rows, from the first block on
    _compared: set[int] | None = None  # blocks of this task, where all of their rows are compared
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

        The model is in eval mode, on the device, with the weights of the epoch. ``scale`` is that of a
        store which is made here. All ranks of a sharded model prepare a split together. ``say`` is
        called with each part of the work as it begins.
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
            there = _agreed_store(store, sharding)
            scale = scale if there is None else scale_of_store(there, job, parameters)
            spec = wanted_spec(job, there, output, parameters, scale)
            if there is not None:
                check_equal(there.spec, spec, str(there.location))
                need_same_loss_scale(there, epoch, split, samples.loss_scale(output))
            projector = make_projector(spec.projection.at(epoch), parameters)
            if scale is not None:
                projector = scale.scaled(projector)
            engine = FactorisedEngine(job.model, output, selected, projector, sharding)
            where = f"{split} at epoch {epoch}"
            rows, probe, batches = probed_rows(
                job, samples, where, device, engine, output, spec, watch, clock, sharding
            )
            blame = partial(blaming_samples, batches, job.model, output, alone=sharding.whole)
            unchanged = settings.unchanged(watch.put_back)
            wanted = _split_spec(job, epoch, rows, probe, fingerprint, watch.hash, unchanged)
            wanted = replace(wanted, loss_scale=samples.loss_scale(output))
            if there is not None:
                need_same_settings(there, epoch, watch.hash, wanted.settings)
            clock.lap("checks")
            rows = within_memory(rows, job, wanted, device, sharding)
            clock.lap("memory")
            if scale is not None:
                # The store's spec names the factors, so that they must be stored before it.
                write_factors(location_of(store, create=True), scale.factors, scale.spec.digest)
            opened = FeatureStore.of_spec(store, spec)
            added = Featurized(0, 0, 0.0)
            if job.append:
                clock.lap("store")
                added = append_samples(opened, epoch, split, wanted, rows, samples, blame, sharding)
                watch.check(surely=True)
                clock.leave_out()
            made = opened.create_split(epoch, split, wanted, batch_rows=rows.least_block)
            if isinstance(given := samples.given, Streamed):
                # A block's rows are compared at its end, when the first samples of the next one are
                # read already.
                held = made.spec.block_rows + 2 * rows.pool
                given.held = max(given.held, -(-held // samples.each))
            if made.spec.doubted:
                rows.distrust(made.spec.doubted)
                if sharding.writes:
                    finish_withdrawal(made)  # which a run before may not have come to
            clock.lap("store")
            task = cls(rows, BlockWriter(made), watch, blame, sharding, clock.measured)
            task.added = added
            task.careful = rows.check == "all" != job.check
            task._compared = set() if rows.check == "all" else None
            undo.pop_all()  # from here on the end of the task gives the weights back
            return task

    def write(self, block: int, then: int | None = None) -> None:
        """Compute a block, and commit it while the next one is computed; see :meth:`wait`.

        The first samples of the block that comes ``then`` are read meanwhile.
        """
        began, waited = time.monotonic(), self.rows.batches.waited
        start, stop = self.writer.spec.block_range(block)
        following = None if then is None else self.writer.spec.block_range(then)
        finish = self._begin(start, stop, following)
        while self.rows.doubted and self._withdraws():
            # All rows of the split are computed alike from here on, these too.
            finish = self._begin(start, stop, following)
        self.rows.doubted = ""
        reading = self.rows.batches.waited - waited
        self.spent += Spent(reading=reading, computing=time.monotonic() - began - reading)
        self.wait()
        self.watch.check()
        self.background.submit(partial(self._store, self.writer, block, finish))
        self._seconds.append(time.monotonic() - began)
        self.rows_written += stop - start
        if self._compared is not None:
            self._compared.add(block)

    def _begin(self, start: int, stop: int, then: tuple[int, int] | None) -> Callable[[], Columns]:
        try:
            with blaming_changes(self.watch), self.blame(range(start, stop)):
                return self.rows.begin(start, stop, then)
        except NumericsError:
            if self.rows.doubted and self._has_others():
                self._withdraw()
            raise

    def _withdraws(self) -> bool:
        """Withdraw all blocks where they are doubted, and tell whether they are."""
        # At once, and before the block by which the doubt came is committed: until that is, the split
        # is incomplete, so that nobody takes it for right if this process is killed just here.
        self.watch.check()
        if not self.sharding.same(self._has_others()):
            return False
        self._distrust(self.sharding.same(self._withdraw()))
        return True

    def _has_others(self) -> bool:
        """Tell whether there may be blocks of which not all rows were compared."""
        if self.careful or self.writer.spec.withdrawn(self.rows.doubted) is self.writer.spec:
            return False
        if self._compared is None:
            return True
        written = set(range(self.writer.spec.blocks)).difference(self.writer.split.missing_blocks())
        return not written <= self._compared

    def _withdraw(self) -> Doubt:
        """Withdraw all blocks, whoever wrote them, since one was wrong; return the doubt of them.

        They are missing from here on, and made anew like all that is.
        """
        split, doubt = self.writer.split, self.rows.doubted
        if written := split.spec.blocks - len(split.missing_blocks()):
            log.warning(
                "%s at epoch %s: blocks may be wrong in rows that were not compared: all %d that are "
                "written are withdrawn, and made anew %s",
                *(split.name, split.epoch, written),
                made_anew(doubt),
            )
        return withdraw_rows(split, doubt).spec.doubted if self.sharding.writes else doubt

    def _distrust(self, doubt: Doubt) -> None:
        """Go on with a split whose blocks were withdrawn, by this worker or another one."""
        if doubt != self.writer.spec.doubted:
            split = self.writer.split
            self.writer = BlockWriter(replace(split, spec=split.spec.withdrawn(doubt)))
            self.rows.distrust(doubt)

    def is_written(self, block: int) -> bool:
        """Tell whether a block is committed, by whichever worker."""
        seen = self.writer.is_written(block), self.writer.doubt()
        written, doubt = self.sharding.same(seen)
        if doubt == self.writer.spec.doubted:
            return written
        self._distrust(doubt)
        return False  # the marker may be one of before

    def missing(self) -> list[int]:
        """List the blocks that are not committed; ranks of a sharded model ask at once."""
        doubt, missing = self.sharding.agreed(self._doubt_and_missing)
        self._distrust(doubt)
        return missing

    def _doubt_and_missing(self) -> tuple[Doubt, list[int]]:
        doubt = self.writer.doubt()
        if doubt != self.writer.spec.doubted:
            self._distrust(doubt)
            # Its markers of before may have come after those were deleted.
            finish_withdrawal(self.writer.split)
        return doubt, self.writer.split.missing_blocks()

    def _store(self, writer: BlockWriter, block: int, finish: Callable[[], Columns]) -> None:
        columns = finish()
        self._computed = time.monotonic()
        if self.sharding.writes:
            twice = writer.is_written(block)
            if writer.spec.doubted:
                # Reasons of bad rows may be left from before, of rows that are right now.
                writer.withdraw(block)
            try:
                writer.write(block, columns)
                # Once more: the rows may have been withdrawn just before the marker came.
                writer.refuse_replaced()
            except WithdrawnError:
                # Another worker found wrong how these rows were computed: the block is missing.
                twice, spec = True, writer.spec.withdrawn(writer.doubt())
                BlockWriter(replace(writer.split, spec=spec)).sweep()
            start, stop = writer.spec.block_range(block)
            self.rows_twice += stop - start if twice else 0

    def wait(self) -> None:
        """Wait until all blocks are committed; raise the error of one that could not be."""
        began = time.monotonic()
        self.background.wait()
        ended = time.monotonic()
        # The background job first waits for the GPU, and then writes.
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
                # A rank that wrote nothing still takes part in the passes by which others check.
                self.sharding.finish()
        finally:
            self.watch.give_back()

    @property
    def blocks_written(self) -> int:
        """Blocks that this task computed and committed."""
        return len(self._seconds)

    def since(self, rows: int, blocks: int, twice: int, spent: Spent, seconds: float) -> Featurized:
        """Sum up the last ``seconds``, given the numbers of rows, blocks and time before them.

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
        """Median time of a block here; before the first block, the time of the preparation."""
        # With 0, a worker without blocks of its own would at once repeat what another has just begun.
        return float(np.median(self._seconds)) if self._seconds else self.prepared.total


def _agreed_store(store: Where | FeatureStore, sharding: Sharding) -> FeatureStore | None:
    """Open the store, or return None if there is none yet; all ranks of a sharded model agree.

    Scaling, and the spec to compare with, follow from it: ranks that saw different things would then
    make different passes, and wait for one another.
    """
    found = find_store(store)
    is_there = found is not None
    if sharding.agreed(lambda: is_there) == is_there:
        return found
    return None if is_there else open_store(store)


def _split_spec(
    job: Job,
    epoch: int | str,
    rows: RowComputer,
    probe: Columns,
    fingerprint: str,
    checkpoint: str,
    settings: Settings,
) -> SplitSpec:
    """Describe the split to be written; ``probe`` has columns of its first samples."""
    return SplitSpec(
        len(rows.ids),
        rows.engine.projector.dim,
        tuple(sorted((name, column_dtype(array)) for name, array in probe.items())),
        checkpoint=checkpoint,
        dataset=fingerprint,
        learning_rate=job.learning_rates.get(epoch),
        keep_bits=rows.spec.keep_bits,
        widths=tuple((name, probe[name].shape[1]) for name in rows.activations.columns),
        block_rows=job.block_rows or 1,
        settings=settings,
    )

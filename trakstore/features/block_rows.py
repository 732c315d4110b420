"""Rows of a split as they are computed: features and the columns beside them, in stored dtypes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trakstore.errors import MemoryLimitError, NumericsError, error_context
from trakstore.features.activations import NamedActivations
from trakstore.features.background import ReadAhead
from trakstore.features.batch_reader import BatchReader, Piece, ReadBatch, RowOrder
from trakstore.features.blockcheck import CheckedRows
from trakstore.features.computed_block import ComputedBlock
from trakstore.features.draws import LabelDraws
from trakstore.features.factorised import FactorisedEngine
from trakstore.features.footprint import Need, Peaks, tensor_bytes
from trakstore.features.gradients import FeatureRows, batch_size, cut
from trakstore.features.outputs import ModelOutput
from trakstore.features.padded_rows import leave_padding_out
from trakstore.features.stored_block import Columns, StoredBlock
from trakstore.features.to_host import gpu_done, in_order, to_host
from trakstore.features.token_rows import TokenRows
from trakstore.features.wording import first_line
from trakstore.planning import pools_of, window_rows
from trakstore.spec import Doubt, StoreSpec
from trakstore.storage import layout

__all__ = ["Columns", "RowComputer"]

log = logging.getLogger("trakstore")

_BLOCKS = 3  # held at once: one computed, one converted to the stored dtype, one being written
_BATCHES = 2  # held at once: the one in use, and the one read ahead
_MANY = 2**31
_SORTED = 8  # batches that a block has at least, where samples are sorted by length within it

Rows = Callable[[Any], FeatureRows]


@dataclass
class RowComputer:
    """Columns of rows, computed, checked and in the stored dtypes.

    Attributes
    ----------
    engine : FactorisedEngine
    activations : NamedActivations
        Activations that are stored beside the features.
    output : ModelOutput
    batches : ReadAhead
        Reader of the samples ``(start, stop)``: batches, each with its rows, in any order.
    ids : ndarray, shape (rows of the split,)
    where : str
        Name of the split, for messages.
    spec : StoreSpec
    classes : int or None
        Number that labels must be below.
    batch_size : int
        Most samples of a batch.
    pool : int
        Samples that are read at once: a batch, or several where they are sorted by length.
    measured : tuple of int
        Rows of the samples whose need of memory is measured: the longest, where lengths differ much.
    shortest : tuple of int
        Rows of the shortest samples; empty where lengths do not differ much.
    at_once : float
        Samples like the measured ones that are computed at once; halved when memory runs out.
    need : Need or None
        Bytes that samples of other lengths need, by which more of them are computed at once, or fewer.
    reader : BatchReader
        Reader of the samples, which ``batches`` asks, and that of rows which are compared.
    check : {"some", "all"}
        Rows of each block that are compared with ordinary passes: all of them, once one was wrong.
    labels : LabelDraws or TokenRows, optional
        Drawer of labels in place of the samples' own, or the choice of tokens that belong to each row.
    skip_bad_rows : bool
        Whether rows that are not finite come as fill values, with the reason in a column ``skipped``,
        instead of an error.
    doubted : {"", "padding", "engine"}
        Why rows were wrong, so that others may be that were not compared.
    distrusted : bool
        Whether all rows are computed by the generic engine: see :meth:`distrust`.
    peaks : Peaks
        Bytes that samples need, as far as they were measured.
    """

    engine: FactorisedEngine
    activations: NamedActivations
    output: ModelOutput
    batches: ReadAhead[Piece, list[ReadBatch]]
    ids: NDArray[Any]
    where: str
    spec: StoreSpec
    classes: int | None
    batch_size: int
    pool: int
    measured: tuple[int, ...]
    shortest: tuple[int, ...]
    at_once: float
    reader: BatchReader
    check: CheckedRows = "some"
    skip_bad_rows: bool = False
    labels: LabelDraws | TokenRows | None = None
    need: Need | None = None
    doubted: Doubt = ""
    distrusted: bool = False
    peaks: Peaks = field(default_factory=Peaks)

    @property
    def least_block(self) -> int:
        """Least rows of a block whose size was not asked for."""
        most = min(self.pool, _SORTED * self.batch_size, len(self.ids))
        return max(self.batch_size, most)

    def within(self, limit: int, samples: int, block_bytes: int) -> RowComputer:
        """Return the same with as many samples at once as fit in ``limit`` bytes beside the model.

        The number follows from tensor bytes of one and of two of the first samples. These are counted
        rather than measured, so that every worker finds the same number and computes the same
        micro-batches.

        Parameters
        ----------
        limit : int
            Bytes.
        samples : int
            Number of samples in the split.
        block_bytes : int
            Bytes of a block's features.

        Raises
        ------
        MemoryLimitError
            When not even one sample fits.
        """
        first = self.reader.together(np.array(self.measured))
        one, two = self._peaks(first)
        each = max(1, two - one if samples > 1 else one)
        sample = tensor_bytes(cut(first, 0, 1))
        # Samples that are read take no more than an eighth of the limit: a smaller pool is sorted then.
        pool = min(self.pool, max(self.batch_size, limit // 8 // (_BATCHES * sample)))
        read = _BATCHES * pool * sample
        # Memory that does not grow with the samples may be buffers of a thread. It was counted with one
        # thread; each may have its own.
        buffers = torch.get_num_threads() * max(0, one - each)
        fixed = buffers + read + _BLOCKS * block_bytes + self.engine.gradient_bytes
        what = f"featurizing one sample at a time (batch_size {self.batch_size}, blocks of "
        what += f"{block_bytes:,} bytes)"
        most = _MANY if self.shortest else self.batch_size
        at_once = window_rows(most, each, fixed, limit, what)
        return replace(self, at_once=at_once, pool=pool, need=self._need(sample, each))

    def fitting(self, free: int) -> RowComputer:
        """Return the same with as many samples at once as should fit in ``free`` bytes of a GPU.

        It is an estimate: one sample is always tried, and where memory runs out, fewer are computed at
        once.
        """
        first = self.reader.together(np.array(self.measured))
        one, two = self._peaks(first)
        each = max(1, two - one)
        most = (free - one + each) // each
        if most < self.at_once:
            log.info("%d samples at once, as free memory suggests", max(1, most))
        need = self._need(tensor_bytes(cut(first, 0, 1)), each)
        return replace(self, at_once=max(1, most if need else min(self.at_once, most)), need=need)

    def _need(self, sample: int, each: int) -> Need | None:
        """Measure the shortest samples, to set beside the longest; None where lengths are alike."""
        if not self.shortest:
            return None
        short = self.reader.together(np.array(self.shortest))
        one, two = self._peaks(short)
        size = tensor_bytes(cut(short, 0, 1))
        # Fixed memory may hide what the short samples need. Their need is at least in proportion to
        # their length, as no part of it grows more slowly.
        return Need((size, max(two - one, -(-each * size // sample))), (sample, each))

    def _peaks(self, first: Any) -> tuple[int, int]:
        return self.peaks.of(first, lambda n: self._computed(cut(first, 0, n), self.engine.rows))

    def columns(self, start: int, stop: int) -> Columns:
        """Compute all columns of rows ``start`` to ``stop``; see :meth:`begin`."""
        return self.begin(start, stop)()

    def distrust(self, doubt: Doubt) -> None:
        """Compute rows without padding from here on; where an engine is doubted, each is compared."""
        if self.reader.padded:
            self.reader.padded = False
            self.batches.forget()
        if doubt == "engine":
            self.check, self.distrusted = "all", True
        self.doubted = ""

    def begin(self, start: int, stop: int, then: Piece | None = None) -> Callable[[], Columns]:
        """Compute rows ``start`` to ``stop``, and return a function that gives their columns.

        A GPU may still be computing them then: to wait for it, to check, and to convert to the stored
        dtype can be left to another thread, which calls the function.

        Parameters
        ----------
        start, stop : int
        then : tuple of int, optional
            Rows that will be asked for next: their first samples are read in the background.

        Raises
        ------
        NumericsError
            By the call, when a column is not finite or the stored dtype cannot hold it.
        TrakStoreError
            By the call, when a label is out of range.
        MemoryLimitError
            When memory does not suffice for one sample.
        """
        self._forget_labels()
        pools = partial(pools_of, batch_size=self.batch_size, pool=self.pool)
        pieces, following, generic = pools(start, stop), then and pools(*then)[0], self.distrusted
        self.engine.apart.begin()
        padded = self.reader.padded
        parts, order = self._parts(pieces, following, generic=generic)
        # An event behind all that the GPU was given so far: ``finish`` waits for that and no more.
        ready = gpu_done()
        while not self._right(parts, order, generic=generic):
            # Without padding, the same engine has another try.
            again, padded = padded != self.reader.padded, self.reader.padded
            if generic and self.engine.one_by_one and not again:
                raise NumericsError(
                    f"{self.where}: rows {start} to {stop - 1} are not the gradients of their samples "
                    f"by either engine: the model computes another function in a batch than alone"
                )
            self.engine.one_by_one = generic and not again  # without vmap, where that is wrong, too
            # Samples are read again rather than kept: this is seldom, and a block may be large.
            generic = generic or not again
            parts, order = self._parts(pieces, following, generic=generic)
            ready = gpu_done()

        def finish() -> Columns:
            ready()
            with error_context(self.where):
                return self._stored(parts, order.rows, start, stop)

        return finish

    def _parts(
        self, pieces: list[Piece], following: Piece | None, *, generic: bool = False
    ) -> tuple[list[dict[str, Tensor]], RowOrder]:
        """Compute the columns of a block, in parts, and return them with the order of their rows.

        The samples that come next are read in the background.
        """
        parts, order = list[dict[str, Tensor]](), RowOrder()
        for _, batches in self.batches.through(pieces, following):
            for one in batches:
                rows = self.engine.generic_rows if generic else self._rows_of(one.rows)
                parts += self._batch(self._labelled(one.rows, one.batch), rows)
                order.add(one)
        return parts, order

    def _rows_of(self, own: NDArray[np.int64]) -> Rows:
        """Return the engine's function: that for all draws at once, where rows hold whole samples."""
        draws = self._draws
        if draws == 1 or len(own) % draws or (own[::draws] % draws).any():
            return self.engine.rows
        together = own.reshape(-1, draws) - own[::draws, None]
        whole = bool((together == np.arange(draws)).all())
        return self._together if whole else self.engine.rows

    def _together(self, batch: Any) -> FeatureRows:
        # A part that was made smaller for lack of memory may not hold all draws of its samples: its
        # rows are then computed as separate samples.
        draws = self._draws
        whole = batch_size(batch) % draws == 0
        return self.engine.rows(batch, draws=draws) if whole else self.engine.rows(batch)

    @property
    def _draws(self) -> int:
        """Rows of each sample."""
        return 1 if self.labels is None else self.labels.draws

    def _forget_labels(self) -> None:
        if self.labels is not None:
            self.labels.forget(max(1, int(self.at_once) // self.labels.draws))

    def _labelled(self, rows: NDArray[np.int64], batch: Any) -> Any:
        return batch if self.labels is None else self.labels.labelled(rows, batch)

    def _right(
        self, parts: list[dict[str, Tensor]], order: RowOrder, *, generic: bool = False
    ) -> bool:
        """Check a block; a wrong one puts all others in doubt, and later ones are fully compared."""
        gpu_done()()  # the parts may still be on their way from the GPU
        features = torch.cat([part[layout.FEATURES] for part in parts])
        block = ComputedBlock(
            self.engine, self.where, features, order, self._read, self.reader.padded
        )
        # What was computed one by one needs no more than a look.
        check: CheckedRows = "some" if generic and self.engine.one_by_one else self.check
        before, self.doubted = self.doubted, "engine"  # should the check raise, as of mixed samples
        agrees = block.agrees(check, max(1, min(self.batch_size, int(self.at_once))))
        self.doubted = before
        if not generic and not block.padding_changes:
            drawn = self.engine.apart.drawn
            self.doubted = "engine" if drawn or not agrees else before
            self.check = self.check if agrees else "all"
            spoiled = agrees and self.skip_bad_rows and block.spoils_good_rows()
            agrees = agrees and not drawn and not spoiled
        if block.padding_changes:
            leave_padding_out(self.reader, self.where)
            self.doubted = before or "padding"
            self._forget_labels()  # they were drawn from what padded samples predict
        return agrees

    def _read(self, groups: list[NDArray[np.int64]]) -> list[Any]:
        return list(map(self._labelled, groups, self.reader.groups(groups)))

    def _stored(
        self, parts: list[dict[str, Tensor]], order: NDArray[np.int64], start: int, stop: int
    ) -> Columns:
        """Return the columns, checked, in the stored dtypes; parts are dropped on the way."""
        joined = {
            name: in_order([part.pop(name).numpy() for part in parts], order - start)
            for name in [*parts[0]]
        }
        stored = StoredBlock(
            self.spec, self.ids, self.classes, self.activations.columns, self.where
        )
        if self.skip_bad_rows:
            return stored.masked(joined, start, stop)
        return stored.refusing(joined, start, stop)

    def _batch(self, batch: Any, rows: Rows) -> Iterator[dict[str, Tensor]]:
        """Yield the columns of a batch, as one part or several: fewer samples at once, if need be."""
        size, done = batch_size(batch), 0
        while done < size:
            most = self._most(batch)
            part = self._part(cut(batch, done, done + most), rows)
            if part is not None:
                yield part
                done += most
            else:
                self._halve(batch, min(most, size))

    def _most(self, batch: Any) -> int:
        """Return how many samples of a batch to compute at once: all draws of some, if possible."""
        most = max(1, int(self.at_once * self._lightness(batch)))
        return most - most % self._draws if most > self._draws else most

    def _lightness(self, batch: Any) -> float:
        """Return how many samples of a batch need the memory of one measured sample."""
        if self.need is None:
            return 1.0
        return self.need.of_samples_like(tensor_bytes(cut(batch, 0, 1)))

    def _part(self, batch: Any, rows: Rows) -> dict[str, Tensor] | None:
        """Return columns on their way to the CPU, or None where memory did not suffice."""
        try:
            columns = self._computed(batch, rows)
            labels = self.output.labels(batch)
            if labels is not None:
                columns["label"] = labels
            return {name: to_host(column) for name, column in columns.items()}
        except torch.OutOfMemoryError as error:
            size = batch_size(batch)
            if size > 1 and not self.engine.tensor_parallel:
                return None
            if size > 1:
                # The other ranks of this model wait in the middle of the same pass, and cannot begin it
                # anew.
                raise MemoryLimitError(
                    f"memory does not suffice for {size} samples at once on this rank "
                    f"({first_line(error)}), and ranks that divide layers cannot go on with fewer: "
                    f"give batch_size={size // 2} (--batch-size {size // 2}), or memory_limit="
                ) from error
            raise MemoryLimitError(
                f"memory does not suffice for the gradient of one sample ({first_line(error)}); "
                f"choose parameters=, shorter samples or autocast='bfloat16'"
            ) from error

    def _halve(self, batch: Any, tried: int) -> None:
        """Take half as many samples at once from here on; what was computed before stays."""
        self.at_once = tried // 2 / self._lightness(batch)
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        log.warning("memory did not suffice: going on with %d samples at once", tried // 2)

    def _computed(self, batch: Any, rows: Rows) -> dict[str, Tensor]:
        """Compute all columns of a batch but labels and ids."""
        own = rows(batch)
        features, outputs = own if self.labels is None else self.labels.scaled(batch, own)
        named = {name: column.float() for name, column in outputs._asdict().items()}
        return {layout.FEATURES: features, **named, **self.activations.of(batch)}

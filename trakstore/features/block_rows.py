"""Rows of a split as they are computed: features and the columns beside them, in stored dtypes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trakstore.errors import MemoryLimitError, NumericsError, error_context
from trakstore.features.activations import NamedActivations
from trakstore.features.background import ReadAhead
from trakstore.features.bad_rows import BadRows, need_classes
from trakstore.features.blockcheck import CheckedRows
from trakstore.features.computed_block import ComputedBlock
from trakstore.features.draws import LabelDraws
from trakstore.features.factorised import FactorisedEngine
from trakstore.features.footprint import Need, Peaks, tensor_bytes
from trakstore.features.gradients import FeatureRows, batch_size, cut
from trakstore.features.outputs import ModelOutput
from trakstore.features.to_host import gpu_done, in_order, to_host
from trakstore.features.token_rows import TokenRows
from trakstore.features.wording import first_line
from trakstore.planning import ranges, window_rows
from trakstore.spec import StoreSpec
from trakstore.storage import layout
from trakstore.storage.columns import stored_activations, stored_rows

__all__ = ["Columns", "RowComputer"]

log = logging.getLogger("trakstore")

_BLOCKS = 3  # held at once: one computed, one converted to the stored dtype, one being written
_BATCHES = 2  # held at once: the one in use, and the one read ahead
_MANY = 2**31
_SORTED = 8  # batches that a block has at least, where samples are sorted by length within it

Piece = tuple[int, int]
Columns = dict[str, NDArray[Any]]
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
        Bytes that samples of other lengths need: fewer or more of these are computed at once.
    pick : callable
        Reader of the samples at some rows, as a batch of their own.
    check : {"some", "all"}
        Rows of each block that are compared with ordinary passes: all of them, once one was wrong.
    labels : LabelDraws or TokenRows, optional
        Drawer of labels in place of the samples' own, or the choice of tokens that belong to each row.
    skip_bad_rows : bool
        Whether bad rows are stored as fill values, with the reason in ``skipped``, without an error.
    doubted : bool
        Whether rows were found wrong, so that earlier blocks may be wrong too.
    peaks : Peaks
        Bytes that samples need, as far as they were measured.
    """

    engine: FactorisedEngine
    activations: NamedActivations
    output: ModelOutput
    batches: ReadAhead[Piece, list[tuple[NDArray[np.int64], Any]]]
    ids: NDArray[Any]
    where: str
    spec: StoreSpec
    classes: int | None
    batch_size: int
    pool: int
    measured: tuple[int, ...]
    shortest: tuple[int, ...]
    at_once: float
    pick: Callable[[NDArray[np.int64]], Any]
    check: CheckedRows = "some"
    skip_bad_rows: bool = False
    labels: LabelDraws | TokenRows | None = None
    need: Need | None = None
    doubted: bool = False
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
        first = self.pick(np.array(self.measured))
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
        first = self.pick(np.array(self.measured))
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
        short = self.pick(np.array(self.shortest))
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

    def begin(
        self, start: int, stop: int, then: Piece | None = None, *, generic: bool = False
    ) -> Callable[[], Columns]:
        """Compute rows ``start`` to ``stop``, and return a function that gives their columns.

        A GPU may still be computing them then: to wait for it, to check, and to convert to the stored
        dtype can be left to another thread, which calls the function.

        Parameters
        ----------
        start, stop : int
        then : tuple of int, optional
            Rows that will be asked for next: their first samples are read in the background.
        generic : bool
            Whether they are computed by the generic engine.

        Raises
        ------
        NumericsError
            By the call, when a column is not finite or the stored dtype cannot hold it.
        TrakStoreError
            By the call, when a label is out of range.
        MemoryLimitError
            When memory does not suffice for one sample.
        """
        if self.labels is not None:
            self.labels.forget(max(1, int(self.at_once) // self.labels.draws))
        pieces, following = self._pieces(start, stop), then and self._pieces(*then)[0]
        self.engine.apart.begin()
        parts, order = self._parts(pieces, following, generic=generic)
        # An event behind all that the GPU was given so far: ``finish`` waits for that and no more.
        ready = gpu_done()
        while not self._right(parts, order, generic=generic):
            if generic and self.engine.one_by_one:
                raise NumericsError(
                    f"{self.where}: rows {start} to {stop - 1} are not the gradients of their samples "
                    f"by either engine: the model computes another function in a batch than alone"
                )
            self.engine.one_by_one = generic  # the generic engine was wrong too: do without vmap
            # Samples are read again rather than kept: this is rare, and a block may be large.
            generic = True
            parts, order = self._parts(pieces, following, generic=True)
            ready = gpu_done()

        def finish() -> Columns:
            ready()
            with error_context(self.where):
                return self._stored(parts, order, start, stop)

        return finish

    def _pieces(self, start: int, stop: int) -> list[Piece]:
        """Divide rows into pools, which are read at once: of about one size, each of whole batches."""
        pools = -(-(stop - start) // self.pool)
        batches = -(-(stop - start) // (pools * self.batch_size))
        size = min(self.pool, batches * self.batch_size)
        return [(start + low, start + high) for low, high in ranges(stop - start, size)]

    def _parts(
        self, pieces: list[Piece], following: Piece | None, *, generic: bool = False
    ) -> tuple[list[dict[str, Tensor]], NDArray[np.int64]]:
        """Compute the columns of a block, in parts, and return them with the order of their rows.

        The samples that come next are read in the background.
        """
        parts: list[dict[str, Tensor]] = []
        order: list[NDArray[np.int64]] = []
        for _, batches in self.batches.through(pieces, following):
            for own, batch in batches:
                rows = self.engine.generic_rows if generic else self._rows_of(own)
                parts += self._batch(self._labelled(own, batch), rows)
                order.append(own)
        return parts, np.concatenate(order)

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

    def _labelled(self, rows: NDArray[np.int64], batch: Any) -> Any:
        return batch if self.labels is None else self.labels.labelled(rows, batch)

    def _right(
        self, parts: list[dict[str, Tensor]], order: NDArray[np.int64], *, generic: bool = False
    ) -> bool:
        """Check a block; a wrong one puts earlier ones in doubt, and later ones are fully compared."""
        gpu_done()()  # the parts may still be on their way from the GPU
        features = torch.cat([part[layout.FEATURES] for part in parts])
        read = lambda rows: self._labelled(rows, self.pick(rows))  # noqa: E731
        block = ComputedBlock(self.engine, self.where, features, order, read)
        # Rows that were computed one by one come from ordinary passes already: a few are enough.
        check: CheckedRows = "some" if generic and self.engine.one_by_one else self.check
        agrees = block.agrees(check, max(1, min(self.batch_size, int(self.at_once))))
        if generic:
            return agrees
        drawn = self.engine.apart.drawn
        self.doubted |= self.check == "some" and (drawn or not agrees)
        self.check = self.check if agrees else "all"
        return agrees and not drawn and not (self.skip_bad_rows and block.spoils_good_rows())

    def _stored(
        self, parts: list[dict[str, Tensor]], order: NDArray[np.int64], start: int, stop: int
    ) -> Columns:
        """Return the columns, checked, in the stored dtypes; parts are dropped on the way."""
        joined = {
            name: in_order([part.pop(name).numpy() for part in parts], order - start)
            for name in [*parts[0]]
        }
        if "label" in joined and not self.skip_bad_rows:
            need_classes(joined["label"], self.classes, start, self.ids)
        bad = self._bad(joined, start, stop)
        if not self.skip_bad_rows:
            bad.refuse()
        if bad:
            bad.blanked(joined)
        if "label" in joined:
            joined["label"] = joined["label"].astype(np.int64)
        features = joined.pop(layout.FEATURES)
        for name in self.activations.columns:
            joined[name] = stored_activations(joined[name], self.spec.dtype, start)
        stored = stored_rows(features, self.spec.dtype, start, self.spec.keep_bits)
        columns = {**joined, **stored, layout.SAMPLE_ID: self.ids[start:stop]}
        if not bad:
            return columns
        log.warning("%s: %s: stored as masked", self.where, bad.message)
        return bad.marked(columns)

    def _bad(self, columns: dict[str, NDArray[Any]], start: int, stop: int) -> BadRows:
        """Find rows that are not finite or, where such are skipped, that cannot be stored."""
        more: dict[str, Any] = {}
        if self.skip_bad_rows:
            spec = self.spec
            more = {"classes": self.classes, "dtype": spec.dtype, "keep_bits": spec.keep_bits}
        return BadRows.of(columns, self.ids[start:stop], start, **more)

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
        features, outputs = rows(batch)
        named = {name: column.float() for name, column in outputs._asdict().items()}
        return {layout.FEATURES: features, **named, **self.activations.of(batch)}

"""Rows of samples that are in no store: the features that a query needs, from models kept loaded."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from trakstore.errors import MemoryLimitError, SpecMismatchError
from trakstore.features.activations import NamedActivations
from trakstore.features.background import ReadAhead
from trakstore.features.batch_reader import BatchReader
from trakstore.features.batches import Batches
from trakstore.features.block_rows import Columns, RowComputer
from trakstore.features.blockcheck import CheckedRows
from trakstore.features.devices import need_one_device, worker_device, working_on
from trakstore.features.evaluated import evaluated
from trakstore.features.factorised import FactorisedEngine
from trakstore.features.fitness import explained, need_apart
from trakstore.features.footprint import Peaks
from trakstore.features.job import Job
from trakstore.features.model_settings import ModelSettings, need_same_settings
from trakstore.features.outputs import ModelOutput, as_output
from trakstore.features.outputs.tokens import SeparatesTokens, need_tokens
from trakstore.features.parameters import parameter_spec, select_parameters
from trakstore.features.plain import copied
from trakstore.features.projectors import make_projector
from trakstore.features.scale_choice import scale_of_store
from trakstore.features.token_rows import TokenRows
from trakstore.features.token_samples import ReadTokens, read_tokens
from trakstore.features.wanted_spec import output_on, wanted_spec
from trakstore.features.watch import WeightWatch
from trakstore.features.weights import own_copy
from trakstore.planning import byte_count, human_bytes, ranges
from trakstore.spec import Precision, StoreSpec, check_equal
from trakstore.storage import layout
from trakstore.storage.eight_bits import dequantised
from trakstore.storage.store import FeatureStore

__all__ = ["LoadedModels", "taking_turns"]

# Computation changes settings of the whole process (determinism, autocast, modes of modules), so that
# threads take turns with their samples. The thread that has waited longest holds _NEXT: one that
# releases its turn and at once wants another queues behind it, and no long question holds up the
# others.
_TURN, _NEXT = threading.Lock(), threading.Lock()

_FREE = 0.9  # share of a GPU's free memory that passes may take


@contextmanager
def taking_turns() -> Iterator[None]:
    """Wait for a turn to compute, and hold it."""
    with _NEXT:
        _TURN.acquire()
    try:
        yield
    finally:
        _TURN.release()


@dataclass(frozen=True)
class _LoadedEpoch:
    """The model of an epoch, in eval mode on its device, with the parts that compute its rows."""

    model: nn.Module
    output: ModelOutput
    engine: FactorisedEngine
    spec: StoreSpec
    batches: Batches
    watch: WeightWatch
    where: str
    precision: Precision
    peaks: Peaks = field(default_factory=Peaks)

    def columns(self, sample: Any) -> Columns:
        """Compute the columns of one sample, compared with an ordinary backward pass."""
        columns = self._computed(self._computer(sample, 1, 1, self.spec, check="all"), 1)
        # Stored rows with 8 bits are read as multiples of a scale: these are rounded in the same way.
        if layout.ROW_SCALE in columns:
            scale = columns.pop(layout.ROW_SCALE)
            columns[layout.FEATURES] = dequantised(columns[layout.FEATURES], scale)
        return columns

    def tokens(self, sample: Any, output: ModelOutput) -> ReadTokens:
        """Read the tokens of a sample that count."""
        batch = replace(self.batches, dataset=[sample]).read(0, 1)
        return read_tokens(self.model, output, batch)

    def token_computer(
        self, sample: Any, count: int, output: ModelOutput, at_once: int, limit: int | None
    ) -> RowComputer:
        """Make a computer of the parts of a sample's row that its tokens have, within a limit in bytes.

        The default limit is the free memory of the GPU.
        """
        # Parts are not rounded as stored rows are: each would lose as much as a whole row does.
        spec = replace(self.spec, dtype="float32", keep_bits=None)
        rows = self._computer(sample, count, min(at_once, count), spec, check="some")
        rows.labels = TokenRows(self.model, need_tokens(output), np.arange(count), 1)
        rows.peaks = self.peaks
        if limit is None:
            torch.cuda.empty_cache()
            return rows.fitting(int(_FREE * torch.cuda.mem_get_info(self.batches.device)[0]))
        return rows.within(limit, count, count * self.engine.projector.dim * 4)

    def token_features(self, rows: RowComputer, start: int, stop: int) -> NDArray[np.float32]:
        """Compute the parts of some tokens."""
        features: NDArray[np.float32] = rows.columns(start, stop)[layout.FEATURES]
        self.watch.check()
        return features

    def _computer(
        self, sample: Any, count: int, at_once: int, spec: StoreSpec, check: CheckedRows
    ) -> RowComputer:
        """Make a computer of rows of one sample, repeated ``count`` times."""
        batches = replace(self.batches, dataset=[sample] * count)
        batch = batches.read(0, 1)
        with explained(self.model, self.output, batch):
            classes = self.output.check(self.model, copied(batch))
        reader = BatchReader(batches, at_once)
        return RowComputer(
            self.engine,
            NamedActivations(self.model, self.output, ()),
            self.output,
            ReadAhead(reader.read),
            np.zeros(count, dtype=np.int64),
            self.where,
            spec,
            classes,
            batch_size=at_once,
            pool=at_once,
            measured=tuple(range(min(2, count))),
            shortest=(),
            at_once=at_once,
            reader=reader,
            check=check,
        )

    def _computed(self, rows: RowComputer, count: int) -> Columns:
        columns = rows.columns(0, count)
        self.watch.check()
        return columns

    def predicted(self, sample: Any) -> int | None:
        batch = replace(self.batches, dataset=[sample]).read(0, 1)
        with torch.no_grad(), explained(self.model, self.output, batch):
            classes = self.output.predictions(self.model, batch)
        return None if classes is None else int(classes[0])


class LoadedModels:
    """Models of some epochs of a job, each loaded once, which compute rows of new samples.

    Parameters
    ----------
    job : Job
        Job that made the store's features; its own model stays as it is.
    store : FeatureStore
    epochs : mapping of epoch to str or None
        Epochs to load, with the hash that their weights must have; None where it is unknown.
    device : str, optional
        Device of the models; by default a GPU where there is one.
    memory_limit : int
        Most bytes that the weights of all epochs take together. On a CPU, the passes over a sample's
        tokens share the limit. The job's own limit does not count here.
    loaded : LoadedModels, optional
        Models of this job that are loaded already: epochs with the same weights share them.

    Attributes
    ----------
    device : torch.device
    spec : StoreSpec
        Spec of the store; its precision bounds how close these rows are to stored ones.

    Raises
    ------
    NotFoundError
        When the job has no such epoch.
    SpecMismatchError
        When the job makes other features than the store has, or an epoch's weights differ from its
        hash.
    MemoryLimitError
        When the weights take more than the limit.
    """

    def __init__(
        self,
        job: Job,
        store: FeatureStore,
        epochs: Mapping[int | str, str | None],
        device: str | None = None,
        *,
        memory_limit: int,
        loaded: LoadedModels | None = None,
    ) -> None:
        self.device = worker_device(device)
        each = sum(one.numel() * one.element_size() for one in job.model.state_dict().values())
        # A small model's weights are held twice, to check that a pass does not change them.
        if 2 * each * len(epochs) > memory_limit:
            raise MemoryLimitError(
                f"the weights of {len(epochs)} epochs take {human_bytes(2 * each * len(epochs))}, and "
                f"{human_bytes(memory_limit)} are allowed: name fewer epochs, or raise the memory limit"
            )
        job.check_files(list(epochs))
        self.spec = store.spec
        self._job, self._epochs = job, dict[int | str, _LoadedEpoch]()
        self._limit = memory_limit
        with job.lent():
            for epoch, known in epochs.items():
                there = None if loaded is None else loaded.model_of(epoch, known)
                self._epochs[epoch] = there or self._load(store, epoch, known)

    def model_of(self, epoch: int | str, known: str | None) -> _LoadedEpoch | None:
        """Return the model of an epoch, if it is loaded and its weights have the hash ``known``."""
        loaded = self._epochs.get(epoch)
        same = loaded is not None and known in (None, loaded.watch.hash)
        return loaded if same else None

    def rows(
        self,
        sample: Any,
        epochs: Sequence[int | str],
        go_on: Callable[[], None] = lambda: None,
    ) -> dict[int | str, Columns]:
        """Compute the columns of one sample at some epochs, as a store would have them.

        Parameters
        ----------
        sample : object
            A sample as the job's data sets give it.
        epochs : sequence of epochs
        go_on : callable
            Called before each epoch; it raises when nobody waits for the answer any more.

        Returns
        -------
        dict of epoch to dict of str to ndarray
            ``features``, shape (1, dim), as they are read from a split's column; and ``norm``,
            ``out_to_loss``, ``loss``, ``output`` and, where there are classes, ``label``, shape (1,).

        Raises
        ------
        TrakStoreError
            When the model does not take the sample.
        NumericsError
            When features are not finite.
        """
        found = {}
        for epoch in epochs:
            go_on()
            with self._turn(epoch) as loaded:
                found[epoch] = loaded.columns(sample)
        return found

    @property
    def of_tokens(self) -> bool:
        """True where the job's output is made of tokens."""
        return isinstance(as_output(self._job.output), SeparatesTokens)

    def tokens(self, sample: Any, epoch: int | str) -> ReadTokens:
        """Read the tokens of a sample that count; no pass is needed.

        Raises
        ------
        TrakStoreError
            When the job's output is not made of tokens.
        """
        with self._turn(epoch) as loaded:
            return loaded.tokens(sample, as_output(self._job.output))

    def token_rows(
        self,
        sample: Any,
        count: int,
        epochs: Sequence[int | str],
        go_on: Callable[[], None] = lambda: None,
    ) -> Iterator[tuple[int | str, NDArray[np.float32]]]:
        """Compute the parts of a sample's rows that its tokens contribute, at some epochs.

        Each token costs a forward and a backward pass of the sample. Other samples may take a turn
        after every few tokens.

        Parameters
        ----------
        sample : object
            A sample as the job's data sets give it.
        count : int
            Number of tokens of the sample that count, one or more.
        epochs : sequence of epochs
        go_on : callable
            Called before the passes of every few tokens; it raises when nobody waits for the answer any
            more.

        Yields
        ------
        epoch, ndarray of float32, shape (count, dim)
            Rows that add up to the sample's.

        Raises
        ------
        MemoryLimitError
            When the pass of one token does not fit.
        NumericsError
            When features are not finite.
        """
        output, size = as_output(self._job.output), self._job.batch_size
        for epoch in epochs:
            go_on()
            with self._turn(epoch) as loaded:
                rows = loaded.token_computer(sample, count, output, size, self._limit_of_passes)
            features = []
            for start, stop in ranges(count, max(1, int(rows.at_once))):
                go_on()
                with self._turn(epoch) as loaded:
                    features.append(loaded.token_features(rows, start, stop))
            yield epoch, np.concatenate(features)

    @property
    def _limit_of_passes(self) -> int | None:
        """Most bytes of passes over tokens; None where a GPU's free memory decides."""
        given = self._job.memory_limit
        if given is None:
            return None if self.device.type == "cuda" else self._limit
        return min(byte_count(given), self._limit)

    def predicted(self, sample: Any, epoch: int | str) -> int | None:
        """Predict the class of a sample by the model of an epoch; None where there are no classes."""
        with self._turn(epoch) as loaded:
            return loaded.predicted(sample)

    @contextmanager
    def _turn(self, epoch: int | str) -> Iterator[_LoadedEpoch]:
        """Give the model of an epoch to one thread, in eval mode on its device meanwhile."""
        loaded = self._epochs[epoch]
        precise = working_on(self.device, loaded.precision)
        with taking_turns(), precise, evaluated(loaded.model, self.device):
            yield loaded

    def _load(self, store: FeatureStore, epoch: int | str, known: str | None) -> _LoadedEpoch:
        job = self._job
        # A model that a function builds has no numbers before an epoch is loaded.
        given = job.load(epoch)
        need_one_device(given)
        need_apart(given)
        model = own_copy(given).to(self.device)
        with taking_turns(), working_on(self.device, job.precision), evaluated(model, self.device):
            watch = WeightWatch(model)
            if known is not None and watch.hash != known:
                raise SpecMismatchError(
                    f"the job's weights of epoch {epoch!r} are {watch.hash[:12]}, the store's features "
                    f"were made with {known[:12]}: name the job that was featurized"
                )
            need_same_settings(store, epoch, watch.hash, ModelSettings(model).all)
            selected, output = select_parameters(model, job.parameters), output_on(job, self.device)
            parameters = parameter_spec(selected, job.parameters)
            scale = scale_of_store(store, job, parameters)
            spec = wanted_spec(job, store, output, parameters, scale)
            check_equal(store.spec, spec, "the store")
            projector = make_projector(spec.projection.at(epoch), parameters)
            if scale is not None:
                projector = scale.scaled(projector)
            engine = FactorisedEngine(model, output, selected, projector)
            some = next(iter(job.datasets.values()))
            batches = Batches.of(model, output, some, self.device, job.collate)
        where = f"the sample at epoch {epoch}"
        return _LoadedEpoch(model, output, engine, spec, batches, watch, where, job.precision)

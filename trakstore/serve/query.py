"""``Query``: a store and its models, held ready to be asked about one sample after another."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from trakstore.errors import NotFoundError, TrakStoreError, did_you_mean
from trakstore.kernels.solvers import Damping
from trakstore.methods.by_name import METHODS, default_damping, find_method, scores_by_name
from trakstore.methods.epochs import OF_FEATURES, EpochPair, UnmaskedSplit, epoch_pairs
from trakstore.methods.new_targets import TargetColumns, of_new_targets
from trakstore.methods.sampled_kernel import KernelRows
from trakstore.passes.memory import memory_budget
from trakstore.passes.rows import ArrayRows, whole_column
from trakstore.quantities import as_whole
from trakstore.report.sample import Shown, show_sample
from trakstore.report.sample_source import Render, sample_source
from trakstore.report.units import evenly_spaced
from trakstore.scores.both_ends import BothEnds, both_ends
from trakstore.scores.factored import Scores
from trakstore.serve.answer import Answer
from trakstore.serve.answer_data import Entry
from trakstore.serve.by_epoch import intervals, scores_by_epoch
from trakstore.serve.held_rows import HeldRows
from trakstore.serve.new_samples import NewSamples
from trakstore.serve.question import BadQuestionError, Question, UnknownSampleError
from trakstore.serve.sample_ids import SampleIds
from trakstore.storage.backends.read_only import ReadOnlyLocation
from trakstore.storage.layout import FEATURES, Epoch, as_epoch
from trakstore.storage.store import FeatureStore

if TYPE_CHECKING:  # it needs torch
    from trakstore.features import Job

MOST_LISTED = 1000
_METHODS_HELD = 3  # kernels of so many methods are in memory
_SAMPLES_HELD = 2000  # samples that were shown last
_TILES_OF_STAGE, _MOST_STAGES = 32, 20
_TARGET_COLUMNS = (FEATURES, "norm", "out_to_loss")


class Query:
    """A store that is asked about one sample after another, also about new ones.

    The store is read and never written. Weights, and the factors of the kernels of all epochs, are
    loaded once and held; what is masked, appended or featurized later is seen by a new ``Query``.
    Several threads may ask at once.

    Parameters
    ----------
    store : FeatureStore
        An open store.
    job : Job or str, optional
        The job that was featurized, or its name like ``"jobs.py:digits"``: its models give the features
        of new samples, its data sets hold the samples to show. Without one, only samples of the store
        can be asked about.
    targets, train : str
        The split whose ids are looked up first, and the one that is held responsible.
    epochs : epoch or sequence of epochs, optional
        Checkpoints to answer from; by default all that have these splits.
    method : str
        The method of questions that name none.
    damping : float or Damping, optional
        c of λ = c · tr(K) / n, or ``Damping(absolute=λ)``; when None 1, of a sampled kernel 0.1.
    kernel : {"train", "sampled"}, optional
        Rows of the kernel of ``trak`` and ``influence``, as they take it.
    render : callable, tokenizer or str, optional
        What shows a sample, as in :func:`trakstore.report.write_report`.
    prepare : callable or str, optional
        Function of a dict with ``text``, ``image`` (a PIL image) or ``sample``, and ``label``, that
        returns a sample of the job, or its name; by default samples are made like the first of the
        job's data set.
    device : str, optional
        Where the models are; by default a GPU where there is one.
    memory_limit : int or str, optional
        Most memory to take for the models, and for a question, such as ``"600MB"``; a quarter of
        what is free by default.

    Raises
    ------
    NotFoundError
        A split, epoch, method or job that is not there.
    SpecMismatchError
        The job makes other features, its weights or its data sets are others.
    MemoryLimitError
        The models do not fit.

    Examples
    --------
    >>> import trakstore as ts
    >>> query = ts.Query(ts.open_store("run.zarr"), "jobs.py:digits")  # doctest: +SKIP
    >>> query.ask(target=17, k=5).proponents[0].id  # doctest: +SKIP
    1203
    """

    def __init__(
        self,
        store: FeatureStore,
        job: Job | str | None = None,
        *,
        targets: str = "test",
        train: str = "train",
        epochs: Epoch | Sequence[Epoch] | None = None,
        method: str = "trak",
        damping: float | Damping | None = None,
        kernel: KernelRows = None,
        render: Render | str | None = None,
        prepare: Callable[[dict[str, Any]], Any] | str | None = None,
        device: str | None = None,
        memory_limit: int | str | None = None,
    ) -> None:
        find_method(method)
        self.store = replace(store, location=ReadOnlyLocation.of(store.location))
        self.method, self.train = method.replace("_", "-"), train
        self._damping, self._kernel, self._limit = damping, kernel, memory_limit
        # A store that only has train rows can be asked about these, and about new samples.
        self.targets = targets if store.epochs_of(targets, train) else train
        self._pairs = {
            pair.epoch: pair for pair in epoch_pairs(self.store, self.targets, train, epochs)
        }
        self._bases: OrderedDict[str, Scores] = OrderedDict()
        self._held = HeldRows(memory_budget(memory_limit) // 4)
        self._preparing, self._showing = threading.Lock(), threading.Lock()
        splits = [self._first.target.stored, self._first.train.stored]
        self._models, self._new, self._job = None, None, None
        if job is not None:
            from trakstore.features.job import load_job
            from trakstore.features.query_rows import LoadedModels

            self._job = job = load_job(job) if isinstance(job, str) else job
            known = {epoch: _weights(pair) for epoch, pair in self._pairs.items()}
            self._models = LoadedModels(
                job, self.store, known, device, memory_limit=memory_budget(memory_limit)
            )
            self._new = NewSamples.of(job, self.targets, prepare)
        self._source = sample_source(job, render, splits)

    @property
    def epochs(self) -> tuple[Epoch, ...]:
        """Epochs that it answers from."""
        return tuple(self._pairs)

    @property
    def takes(self) -> list[str]:
        """What new samples can be made of, such as "text"; none where there is no job."""
        return [] if self._new is None else self._new.kinds

    @property
    def rows(self) -> int:
        """Number of train rows, masked ones not counted."""
        return self._first.train.rows

    @property
    def methods(self) -> list[str]:
        """Names of the methods that questions may name."""
        return [*METHODS]

    def some_targets(self, count: int) -> list[int | str]:
        """Return ids of some samples that can be asked about, evenly spaced.

        Parameters
        ----------
        count : int
            Most ids.
        """
        ids = self._ids_of(self.targets).values
        some: list[int | str] = ids[evenly_spaced(len(ids), count)].tolist()
        return some

    def prepare(self) -> Query:
        """Factor the kernels and try one question, so that the first one that comes is quick."""
        self.ask(target="@0", k=1)
        if self._new is not None and self._models is not None:
            self._models.rows(self._new.dataset[0], self.epochs)
        return self

    @property
    def _first(self) -> EpochPair:
        return next(iter(self._pairs.values()))

    def ask(
        self,
        sample: Any = None,
        k: int = 20,
        *,
        target: int | str | None = None,
        split: str | None = None,
        text: str | None = None,
        image: Any = None,
        label: Any = None,
        epochs: Epoch | Sequence[Epoch] | None = None,
        method: str | None = None,
    ) -> Answer:
        """List the train samples with the largest and the smallest scores for one sample.

        Parameters
        ----------
        sample : object, optional
            A sample as the job's data sets give it; or one of ``target``, ``text`` and ``image``.
        k : int
            Entries of each list.
        target : int or str, optional
            Id of a sample of the store, or ``"@N"`` for row N.
        split : str, optional
            Split of ``target``; by default that of the targets, else the train split.
        text : str, optional
            A text, made a sample by the tokenizer of the job's collator.
        image : bytes, PIL image or array, optional
            An image, made a sample of the size of the job's.
        label : object, optional
            Class of a text or image; the model's own prediction by default.
        epochs : epoch or sequence of epochs, optional
            Epochs to combine; all by default.
        method : str, optional
            A method by its name; by default that of this ``Query``.

        Returns
        -------
        Answer
            Scores of a target are those of ``top_k(scores.isel(target=[row]), k)``, bit by bit.
            Those of a new sample have the bits of a split that was featurized one sample at a
            time, and those of larger batches up to rounding.

        Raises
        ------
        BadQuestionError
            A question that has no answer.
        NumericsError
            Features of the sample, or scores, are not finite.
        """
        chosen = None if epochs is None else _as_tuple(epochs)
        question = Question(
            target, split, text, image, sample, label, k=k, epochs=chosen, method=method
        )
        *_, answer = self.stages(question, stages=1)
        return answer

    def stages(
        self,
        question: Question,
        *,
        stages: int | None = None,
        go_on: Callable[[], None] = lambda: None,
    ) -> Iterator[Answer]:
        """Answer a question in stages, each after a further part of the train rows.

        Parameters
        ----------
        question : Question
            The sample, and how it is asked about.
        stages : int, optional
            Parts; by default one for small stores, up to 20 for large ones.
        go_on : callable
            Called between steps: it raises where nobody waits for the answer any more.

        Yields
        ------
        Answer
            The last one is whole.
        """
        epochs = self._known_epochs(question.epochs)
        k = self._known_length(question.k)
        method = self._known_method(question.method)
        asked = self._asked(question, epochs, go_on)
        go_on()
        base = self._base(method)
        scores = of_new_targets(base, asked.columns, asked.ids, self._limit)
        tiles = -(-scores.shape[1] // scores.tile_rows)
        count = stages or max(1, min(_MOST_STAGES, tiles // _TILES_OF_STAGE))
        for ends in both_ends(scores, k, stages=count, memory_limit=self._limit):
            go_on()
            lists = self._lists(scores, ends, question.show)
            yield Answer(
                asked.target,
                asked.split,
                asked.label,
                asked.predicted,
                asked.shown if question.show else None,
                *lists,
                method=method,
                epochs=epochs,
                share=ends.share,
                provenance=self.provenance(epochs, method),
            )

    def _known_epochs(self, named: Sequence[Epoch] | None) -> tuple[Epoch, ...]:
        if named is None:
            return self.epochs
        try:
            epochs = tuple(as_epoch(one) for one in named)
        except TrakStoreError as error:  # no epoch can have such a name
            raise UnknownSampleError(str(error)) from None
        for epoch in epochs:
            if epoch not in self._pairs:
                raise UnknownSampleError(f"no epoch {epoch!r}{did_you_mean(epoch, self.epochs)}")
        if not epochs or len(set(epochs)) < len(epochs):
            raise BadQuestionError("epochs must be some epochs, each named once")
        return epochs

    def _known_length(self, k: Any) -> int:
        most = min(self.rows, MOST_LISTED)
        try:
            return as_whole(k, "k", 1, most)
        except TrakStoreError as error:
            raise BadQuestionError(str(error)) from None

    def _known_method(self, name: str | None) -> str:
        method = self.method if name is None else name.replace("_", "-")
        if method not in METHODS:
            raise UnknownSampleError(f"no method {name!r}{did_you_mean(method, METHODS)}")
        return method

    def _base(self, method: str) -> Scores:
        """Return scores of the train rows with themselves: their kernels serve any target."""
        with self._preparing:
            if method not in self._bases:
                self._bases[method] = self._made(method)
                while len(self._bases) > _METHODS_HELD:
                    self._bases.popitem(last=False)
            self._bases.move_to_end(method)
            return self._bases[method]

    def _made(self, method: str) -> Scores:
        takes = "kernel" in find_method(method).options
        kernel = self._kernel if takes else None
        try:
            scores = scores_by_name(
                method,
                self.store,
                self.train,
                self.train,
                self.epochs,
                damping=self._c(method),
                kernel=kernel,
                memory_limit=self._limit,
            )
        except (NotFoundError, TrakStoreError) as error:
            if method == self.method:
                raise
            raise BadQuestionError(f"this store has no scores by {method!r}") from error
        # Ids are listed in every answer: they are in memory already.
        return self._held.held(replace(scores, train_ids=ArrayRows(self._train_ids.values)))

    def _c(self, method: str) -> float | Damping:
        if self._damping is not None:
            return self._damping
        return default_damping(method, self.store, self.train, self.epochs, self._kernel)

    def _asked(
        self, question: Question, epochs: tuple[Epoch, ...], go_on: Callable[[], None]
    ) -> _Asked:
        if question.target is not None:
            return self._stored(question, epochs)
        return self._fresh(question, epochs, go_on)

    def _stored(self, question: Question, epochs: tuple[Epoch, ...]) -> _Asked:
        """Read a sample of the store."""
        split, row = self._place(question)
        pairs = {epoch: self._pairs[epoch] for epoch in epochs}
        sides = {
            epoch: pair.target if split == self.targets else pair.train
            for epoch, pair in pairs.items()
        }
        columns = {epoch: _columns_of(side, row) for epoch, side in sides.items()}
        side = sides[epochs[-1]]
        ids = self._ids_of(split).values[row : row + 1]
        name, position = ids.tolist()[0], int(side.positions.read(row, row + 1)[0])
        label = None
        if "label" in side.stored.columns:
            label = int(side.column("label").read(row, row + 1)[0])
        shown = self._show(split, position, name) if question.show else None
        predicted = self._predicted(split, position, epochs[-1]) if question.show else None
        return _Asked(columns, ids, name, split, label, predicted, shown)

    def _predicted(self, split: str, position: int, epoch: Epoch) -> int | None:
        """Predict the class of a sample of the store; None where the job has no models or classes."""
        if self._models is None or self._job is None:
            return None
        with self._showing:
            sample = self._job.datasets[split][position]
        return self._models.predicted(sample, epoch)

    def _place(self, question: Question) -> tuple[str, int]:
        """Find the split and the row of a sample of the store."""
        known = list(dict.fromkeys([self.targets, self.train]))
        if question.split is not None and question.split not in known:
            raise UnknownSampleError(
                f"no split {question.split!r}{did_you_mean(question.split, known)}"
            )
        for split in known if question.split is None else [question.split]:
            row = self._ids_of(split).row(question.target or 0)
            if row is not None:
                return split, row
        where = " or ".join(known) if question.split is None else question.split
        raise UnknownSampleError(f"{where} has no sample id {str(question.target)[:80]!r}")

    def _fresh(
        self, question: Question, epochs: tuple[Epoch, ...], go_on: Callable[[], None]
    ) -> _Asked:
        """Compute the features of a new sample."""
        if self._models is None or self._new is None:
            raise BadQuestionError("only samples of the store can be asked about: there is no job")
        models, last = self._models, epochs[-1]
        with self._showing:
            sample = self._new.make(question, lambda one: models.predicted(one, last))
        found = models.rows(sample, epochs, go_on)
        label = found[last].get("label")
        predicted = models.predicted(sample, last)
        shown = show_sample(question.text or sample) if question.show else None
        return _Asked(
            {epoch: _kept(columns) for epoch, columns in found.items()},
            np.zeros(1, dtype=np.int64),
            None,
            None,
            None if label is None else int(label[0]),
            predicted,
            shown,
        )

    def _show(self, split: str, position: int, name: Any) -> Shown | None:
        with self._showing:
            if len(self._source.known) > _SAMPLES_HELD:
                self._source.known.clear()
            return self._source(split, position, name)

    def _lists(
        self, scores: Scores, ends: BothEnds, show: bool
    ) -> tuple[tuple[Entry, ...], tuple[Entry, ...]]:
        """Make the entries of both lists; what takes a further look comes once they are whole."""
        lists = [one.isel(target=0) for one in (ends.largest, ends.smallest)]
        positions = np.concatenate([one["position"].values for one in lists])
        each = None
        if ends.share == 1.0:
            # Columns of the scores are unmasked rows, positions count masked ones too.
            masked = self._first.train.masked
            each = scores_by_epoch(scores, positions - np.searchsorted(masked, positions))
        between = intervals(scores, each)
        both = [self._entries(one, show) for one in lists]
        made = list(chain(*both))
        if each is not None:
            made = [
                replace(one, by_epoch=tuple(own), low=low, high=high)
                for one, own, (low, high) in zip(made, each.T.tolist(), between, strict=True)
            ]
        return tuple(made[: len(both[0])]), tuple(made[len(both[0]) :])

    def _entries(self, listed: xr.Dataset, show: bool) -> list[Entry]:
        """Make the entries of a list, but for its places that are still free."""
        columns = [listed[name].values.tolist() for name in ("train", "score", "position")]
        return [
            Entry(
                name,
                score,
                position,
                None if self._labels is None else int(self._labels[position]),
                shown=self._show(self.train, position, name) if show else None,
            )
            for name, score, position in zip(*columns, strict=True)
            if position >= 0
        ]

    @cached_property
    def _labels(self) -> NDArray[np.int64] | None:
        stored = self._first.train.stored
        return whole_column(stored.column("label")) if "label" in stored.columns else None

    @cached_property
    def _train_ids(self) -> SampleIds:
        return SampleIds(self._first.train)

    @cached_property
    def _target_ids(self) -> SampleIds:
        return SampleIds(self._first.target)

    def _ids_of(self, split: str) -> SampleIds:
        return self._train_ids if split == self.train else self._target_ids

    def provenance(self, epochs: Sequence[Epoch], method: str) -> dict[str, Any]:
        """Say what scores are made from, without a place of this machine.

        Parameters
        ----------
        epochs : sequence of epochs
            Epochs of the scores.
        method : str
            Name of their method.

        Returns
        -------
        dict
            Name of the store, projection and dimension, train split and rows, damping, hashes of
            the weights by epoch, and the version of the package.
        """
        c, projection = Damping.of(self._c(method)), self.store.spec.projection
        damping = {"absolute": c.absolute} if c.relative is None else {"relative": c.relative}
        return {
            "store": PurePath(str(self.store.location)).name,
            "projection": projection.kind,
            "dim": self._first.train.dim,
            "train": self.train,
            "train_rows": self.rows,
            "damping": damping if "damping" in find_method(method).options else None,
            "checkpoints": {
                str(epoch): (_weights(self._pairs[epoch]) or "")[:12] for epoch in epochs
            },
            "trakstore": _version(),
        }


@dataclass(frozen=True)
class _Asked:
    """The sample of a question: its columns by epoch, and what is said of it."""

    columns: Mapping[Epoch, TargetColumns]
    ids: NDArray[Any]
    target: int | str | None
    split: str | None
    label: int | None
    predicted: int | None
    shown: Shown | None


def _columns_of(side: UnmaskedSplit, row: int) -> dict[str, NDArray[Any]]:
    names = [name for name in _TARGET_COLUMNS if name in side.stored.columns]
    return {name: side.column(name).read(row, row + 1) for name in names}


def _kept(columns: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name: columns[name] for name in _TARGET_COLUMNS if name in columns}


def _weights(pair: EpochPair) -> str | None:
    """Return the hash of the weights of an epoch, where the store knows it."""
    checkpoint: str | None = pair.train.stored.spec.checkpoint
    return None if checkpoint is None or checkpoint.startswith(OF_FEATURES) else checkpoint


def _as_tuple(epochs: Epoch | Sequence[Epoch]) -> tuple[Epoch, ...]:
    return (epochs,) if isinstance(epochs, int | str) else tuple(epochs)


def _version() -> str:
    try:
        return version("trakstore")
    except PackageNotFoundError:  # run from its sources
        return "unknown"

"""``Query``: a store and its models, held ready to be asked about one sample after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from trakstore.errors import NotFoundError, SpecMismatchError
from trakstore.kernels.solvers import Damping
from trakstore.methods.by_name import METHODS, find_method
from trakstore.methods.epochs import epoch_pairs, need_open
from trakstore.methods.new_targets import of_new_targets
from trakstore.methods.sampled_kernel import KernelRows
from trakstore.passes.rows import ArrayRows
from trakstore.planning import byte_count
from trakstore.report.sample_source import Render
from trakstore.scores.both_ends import both_ends
from trakstore.serve.answer import Answer
from trakstore.serve.answer_entries import entries_of
from trakstore.serve.held_index import HeldIndex
from trakstore.serve.held_kernels import HeldKernels
from trakstore.serve.known_names import known_epochs, known_length, known_method, named_epochs
from trakstore.serve.new_samples import try_sample
from trakstore.serve.provenance import provenance_of
from trakstore.serve.query_options import QueryOptions
from trakstore.serve.question import Question
from trakstore.serve.served_job import ServedJob
from trakstore.serve.stored_samples import StoredSamples
from trakstore.serve.token_scores import asked_tokens
from trakstore.storage.backends.read_only import ReadOnlyLocation
from trakstore.storage.layout import Epoch
from trakstore.storage.opening import open_store
from trakstore.storage.store import FeatureStore

if TYPE_CHECKING:  # it needs torch
    from trakstore.features import Job

_TILES_OF_STAGE, _MOST_STAGES = 32, 20


class Query:
    """A store that is asked about one sample after another, also about new ones.

    The store is read and never written. Weights, and the factors of the kernels of all epochs, are
    loaded once and held; what is masked, appended or featurized later is seen by another one, which
    :meth:`renewed` gives. Several threads may ask at once.

    Parameters
    ----------
    store : FeatureStore
        An open store.
    job : Job or str, optional
        The job that was featurized, or its name like ``"jobs.py:digits"``: its models give the features
        of new samples, its data sets hold the samples to show. Without one, only samples of the store
        can be asked about.
    targets, train : str
        The split whose samples ``target=`` names, and the one that is held responsible.
    epochs : epoch or sequence of epochs, optional
        Checkpoints to answer from; by default all that have these splits.
    method : str
        The method of questions that name none.
    damping : float or Damping, optional
        c of λ = c · tr(K) / n, or ``Damping(absolute=λ)``; when None 1, of a sampled kernel 0.1.
    kernel : {"train", "sampled"}, optional
        Rows of the kernel of ``trak`` and ``influence``, as they take it.
    index : bool
        Ask the stored index of ``method`` and these epochs (:func:`trakstore.build_index`): scores are
        exact, a list may lack some, and an answer's ``provenance["index"]`` says the recall.
    render : callable, tokenizer or str, optional
        What shows a sample, as in :func:`trakstore.report.write_report`.
    prepare : callable or str, optional
        Function of a dict with ``text``, ``image`` (a PIL image) or ``sample``, and ``label``, that
        returns a sample of the job, or its name; by default samples are made like the first of the
        job's data set.
    device : str, optional
        Where the models are; by default a GPU where there is one.
    memory_limit : int or str, optional
        Most memory to take for the models, and for the scores of a question, such as ``"600MB"``; a
        quarter of what is free by default. The pass over one new sample, whose length is bounded,
        is not counted.

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
    >>> query = ts.Query(store)
    >>> query.rows, query.some_targets(2)
    (24, ['test-0', 'test-5'])
    >>> query.ask(target="test-0", k=5).proponents[0].id
    'train-9'

    With the job, samples are shown, and new ones can be asked about:

    >>> query = ts.Query(store, "jobs.py:digits")  # doctest: +SKIP
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
        index: bool = False,
        render: Render | str | None = None,
        prepare: Callable[[dict[str, Any]], Any] | str | None = None,
        device: str | None = None,
        memory_limit: int | str | None = None,
    ) -> None:
        find_method(method)
        need_open(store)
        self.method, self.train = method.replace("_", "-"), train
        self._options = QueryOptions(
            *(targets, train, epochs, self.method, damping, kernel, index),
            *(render, prepare, device, memory_limit),
        )
        self._named, self._served = job, ServedJob(self._options)
        self._open_rows(store)
        if self._index is not None:
            self._index.open()
        self._open_job(job)

    def _open_rows(self, store: FeatureStore) -> None:
        """Open the splits as they are now."""
        asked = self._options
        self.store = replace(store, location=ReadOnlyLocation.of(store.location))
        # Read before the splits are opened: what changes in between is seen as a change then.
        self._stamp = asked.stamp(self.store.location)
        self._opened_at = self._stamp.read()
        # A store that only has train rows can be asked about these, and about new samples.
        self.targets = asked.targets if store.epochs_of(asked.targets, self.train) else self.train
        pairs = epoch_pairs(self.store, self.targets, self.train, asked.epochs)
        self._pairs = {pair.epoch: pair for pair in pairs}
        self._stored = StoredSamples(self._pairs)
        ids = ArrayRows(self._stored.train_ids.values)
        self._kernels = HeldKernels.of(self.store, self.epochs, asked, ids)
        self._index = HeldIndex(self._kernels, asked.memory_limit) if asked.index else None

    def _open_job(self, job: Job | str | None) -> None:
        """Load the models that are not loaded yet, and look at the data sets."""
        self._served = self._served.loaded(job, self.store, self._pairs)
        self._finder = self._served.finder(self._stored, self.targets)
        self._scorer = self._served.scorer()

    def is_current(self) -> bool:
        """Tell whether the store still has the rows that this answers from, masked as they were.

        Examples
        --------
        >>> ts.Query(store).is_current()
        True
        """
        return self._stamp.read() == self._opened_at

    def renewed(self) -> Query:
        """Return a query like this one of the store as it is now; models that are loaded stay so.

        A job that was named is loaded anew where its data sets are not the store's any more.

        Raises
        ------
        TrakStoreError
            As when a query is made: rows of a split are missing, for one.

        Examples
        --------
        >>> ts.Query(store).renewed().rows
        24
        """
        renewed = copy(self)
        renewed._open_rows(open_store(self.store.location))
        try:
            renewed._open_job(self._served.job)
        except (NotFoundError, SpecMismatchError):
            if not isinstance(self._named, str):
                raise
            renewed._open_job(self._named)
        return renewed

    @property
    def fits_twice(self) -> bool:
        """True where the memory limit has room for the kernels, rows and index of another like it."""
        limit, index = self._options.memory_limit, self._index
        held = self._kernels.nbytes + (0 if index is None else index.nbytes)
        return limit is None or 2 * held <= byte_count(limit)

    def let_go(self) -> None:
        """Hold no kernels, rows and index any more: the next question makes them again."""
        self._kernels.let_go()
        if self._index is not None:
            self._index.let_go()

    @property
    def epochs(self) -> tuple[Epoch, ...]:
        """Epochs that it answers from."""
        return tuple(self._pairs)

    @property
    def takes(self) -> list[str]:
        """Names of what new samples can be made of, such as "text"; none where there is no job."""
        return [] if self._finder.new is None else self._finder.new.kinds

    @property
    def scores_tokens(self) -> bool:
        """True where tokens of found samples can have scores: by the job of a language model."""
        return self._scorer is not None

    @property
    def rows(self) -> int:
        """Number of train rows, masked ones not counted."""
        return self._stored.first.train.rows

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
        return self._stored.some_targets(count)

    def prepare(self) -> Query:
        """Factor the kernels and try one question, so that the first one that comes is quick."""
        self.ask(target="@0", k=1)
        job, models, lock = self._served.job, self._served.models, self._served.lock
        data = {} if job is None else job.datasets
        split = self.targets if self.targets in data else self.train
        if models is not None and split in data:
            # The first row may be a masked one, which has no features.
            position = self._stored.position(split, 0)
            try_sample(models, data[split], position, split, self.epochs, lock)
        return self

    def ask(
        self,
        sample: Any = None,
        k: int | None = None,
        *,
        target: int | str | None = None,
        split: str | None = None,
        text: str | None = None,
        image: Any = None,
        label: Any = None,
        epochs: Epoch | Sequence[Epoch] | None = None,
        method: str | None = None,
        tokens: int = 0,
    ) -> Answer:
        """List the train samples with the largest and the smallest scores for one sample.

        Parameters
        ----------
        sample : object, optional
            A sample as the job's data sets give it; or one of ``target``, ``text`` and ``image``.
        k : int, optional
            Entries of each list; 20 by default, or all where there are fewer train rows.
        target : int or str, optional
            Id of a sample of ``split``, or ``"@N"`` for its row N.
        split : str, optional
            The targets' split, which is the default, also for an id that both have; or the train split.
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
        tokens : int
            Entries of each list, 20 at most, whose tokens have scores of their own, which add up to
            the entry's, up to the precision of stored rows: ``answer.proponents[0].tokens``. Of
            language models, by passes over the found samples anew, one for each token.

        Returns
        -------
        Answer
            Scores of a target are those of ``top_k(scores.isel(target=[row]), k)``, bit by bit; by an
            index, up to rounding.
            Those of a new sample have the bits of a split that was featurized one sample at a
            time, and those of larger batches up to rounding.

        Raises
        ------
        BadQuestionError
            A question that has no answer.
        NumericsError
            Features of the sample, or scores, are not finite.

        Examples
        --------
        >>> answer = ts.Query(store).ask(target="test-0", k=2)
        >>> [one.id for one in answer.proponents], [one.id for one in answer.opponents]
        (['train-9', 'train-15'], ['train-16', 'train-22'])
        """
        chosen = named_epochs(epochs)
        question = Question(
            target, split, text, image, sample, label, k, chosen, method, tokens=tokens
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
        epochs = known_epochs(question.epochs, self.epochs)
        k = known_length(question.k, self.rows)
        method = known_method(question.method, self.method)
        scored = asked_tokens(question.tokens, self._scorer)
        limit = self._options.memory_limit
        asked = self._finder.find(question, epochs, go_on)
        go_on()
        scores = of_new_targets(self._kernels.scores(method), asked.columns, asked.ids, limit)
        tiles = -(-scores.shape[1] // scores.tile_rows)
        count = stages or max(1, min(_MOST_STAGES, tiles // _TILES_OF_STAGE))
        provenance, passes = self.provenance(epochs, method), None
        if self._index is not None and self._index.serves(scores):
            provenance["index"] = self._index.said
            passes = self._index.both_ends(scores, k)
        show = self._finder.show if question.show else None
        for ends in passes or both_ends(scores, k, stages=count, memory_limit=limit):
            go_on()
            lists = entries_of(ends, scores, self._stored, show)
            if scored and self._scorer and ends.share == 1.0:
                more = self._scorer.of_entries(scored, scores, self._stored, go_on)
                lists = more(lists[0]), more(lists[1])
            yield Answer(
                asked.target,
                asked.split,
                asked.label,
                asked.predicted,
                asked.shown,
                *lists,
                method=method,
                epochs=epochs,
                share=ends.share,
                provenance=provenance,
            )

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
            Name of the store, projection and dimension, train split and rows, a digest of the rows of
            both splits and of those that are masked (``state``), damping, hashes of the weights by
            epoch, and the version of the package.
        """
        pairs = {epoch: self._pairs[epoch] for epoch in epochs}
        state = self._stored.state(epochs)
        return provenance_of(self.store, pairs, method, self._kernels.c(method), state)

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
    """A store that is asked about one sample after another, stored or new.

    The store is only read. Weights, and the kernel factors of all epochs, are loaded once and kept; a
    later mask, append or featurize run needs another query, from :meth:`renewed`. Several threads may
    ask at once.

    Parameters
    ----------
    store : FeatureStore
        An open store.
    job : Job or str, optional
        Job that was featurized, or its name like ``"jobs.py:digits"``: its models compute the features
        of new samples, and its data sets hold the samples to show. Without a job, only samples of the
        store can be asked about.
    targets, train : str
        Split whose samples ``target=`` names, and split of the train rows.
    epochs : epoch or sequence of epochs, optional
        Checkpoints that answer; by default all that have both splits.
    method : str
        Method of questions that name none.
    damping : float or Damping, optional
        c in λ = c · tr(K) / n, or ``Damping(absolute=λ)``; by default 1, for a sampled kernel 0.1.
    kernel : {"train", "sampled"}, optional
        Rows of the kernel of ``trak`` and ``influence``, as in those methods.
    index : bool
        Whether to use the stored index of ``method`` and these epochs (:func:`trakstore.build_index`):
        scores are exact, a list may lack some, and an answer's ``provenance["index"]`` gives the
        recall.
    render : callable, tokenizer or str, optional
        Function or tokenizer that shows a sample, as in :func:`trakstore.report.write_report`.
    prepare : callable or str, optional
        Function that returns a sample of the job for a dict with ``text``, ``image`` (a PIL image) or
        ``sample``, and ``label``, or its name; by default samples are made like the first one of the
        job's data set.
    device : str, optional
        Device of the models; by default a GPU if there is one.
    memory_limit : int or str, optional
        Most memory for the models, and for the scores of a question, such as ``"600MB"``; by default a
        quarter of the free memory. The pass over one new sample, whose length is limited, does not
        count.

    Raises
    ------
    NotFoundError
        When a split, epoch, method or job does not exist.
    SpecMismatchError
        When the job makes other features, or has other weights or data sets.
    MemoryLimitError
        When the models do not fit.

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
        # Read before the splits are opened, so that a change in between shows as a change later.
        self._stamp = asked.stamp(self.store.location)
        self._opened_at = self._stamp.read()
        # With train rows only, questions can be about these, and about new samples.
        self.targets = asked.targets if store.epochs_of(asked.targets, self.train) else self.train
        pairs = epoch_pairs(self.store, self.targets, self.train, asked.epochs)
        self._pairs = {pair.epoch: pair for pair in pairs}
        self._stored = StoredSamples(self._pairs)
        ids = ArrayRows(self._stored.train_ids.values)
        self._kernels = HeldKernels.of(self.store, self.epochs, asked, ids)
        self._index = HeldIndex(self._kernels, asked.memory_limit) if asked.index else None

    def _open_job(self, job: Job | str | None) -> None:
        """Load the models that are not loaded yet, and check the data sets."""
        self._served = self._served.loaded(job, self.store, self._pairs)
        self._finder = self._served.finder(self._stored, self.targets)
        self._scorer = self._served.scorer()

    def is_current(self) -> bool:
        """Tell whether the store still has the rows that this query uses, with the same mask.

        Examples
        --------
        >>> ts.Query(store).is_current()
        True
        """
        return self._stamp.read() == self._opened_at

    def renewed(self) -> Query:
        """Return a query like this one for the present store; loaded models are shared.

        A job that was named is loaded again if its data sets are no longer those of the store.

        Raises
        ------
        TrakStoreError
            As for a new query: when rows of a split are missing, for one.

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
        """True if the memory limit has room for the kernels, rows and index of a second query."""
        limit, index = self._options.memory_limit, self._index
        held = self._kernels.nbytes + (0 if index is None else index.nbytes)
        return limit is None or 2 * held <= byte_count(limit)

    def let_go(self) -> None:
        """Drop kernels, rows and index: the next question makes them again."""
        self._kernels.let_go()
        if self._index is not None:
            self._index.let_go()

    @property
    def epochs(self) -> tuple[Epoch, ...]:
        """Epochs that answer."""
        return tuple(self._pairs)

    @property
    def takes(self) -> list[str]:
        """Sources of new samples, such as "text"; none without a job."""
        return [] if self._finder.new is None else self._finder.new.kinds

    @property
    def scores_tokens(self) -> bool:
        """True if tokens of listed samples can have scores: with the job of a language model."""
        return self._scorer is not None

    @property
    def rows(self) -> int:
        """Number of train rows, without masked ones."""
        return self._stored.first.train.rows

    @property
    def methods(self) -> list[str]:
        """Names of the methods that questions may name."""
        return [*METHODS]

    def some_targets(self, count: int) -> list[int | str]:
        """Return ids of some samples, evenly spaced, that can be asked about.

        Parameters
        ----------
        count : int
            Most ids.
        """
        return self._stored.some_targets(count)

    def prepare(self) -> Query:
        """Factor the kernels and try one question, so that the first question is answered quickly."""
        self.ask(target="@0", k=1)
        job, models, lock = self._served.job, self._served.models, self._served.lock
        data = {} if job is None else job.datasets
        split = self.targets if self.targets in data else self.train
        if models is not None and split in data:
            # The first row may be masked, and then has no features.
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
            A sample in the form of the job's data sets; or give one of ``target``, ``text`` and
            ``image``.
        k : int, optional
            Entries of each list; by default 20, or all if there are fewer train rows.
        target : int or str, optional
            Id of a sample of ``split``, or ``"@N"`` for its row N.
        split : str, optional
            The targets' split (the default, also for an id that both splits have), or the train split.
        text : str, optional
            Text that the tokenizer of the job's collator turns into a sample.
        image : bytes, PIL image or array, optional
            Image that is turned into a sample of the size of the job's.
        label : object, optional
            Class of a text or image; by default the model's own prediction.
        epochs : epoch or sequence of epochs, optional
            Epochs to combine; all by default.
        method : str, optional
            Name of a method; by default that of this ``Query``.
        tokens : int
            Number of entries of each list, at most 20, whose tokens get scores of their own, which add
            up to the entry's, up to the precision of stored rows: ``answer.proponents[0].tokens``. For
            language models; each token costs a new pass over the listed sample.

        Returns
        -------
        Answer
            Lists of scores. Those of a target equal ``top_k(scores.isel(target=[row]), k)`` to the bit;
            with an index, up to rounding. Those of a new sample equal, to the bit, those of a split
            that was featurized one sample at a time, and with larger batches up to rounding.

        Raises
        ------
        BadQuestionError
            When the question has no answer.
        NumericsError
            When features of the sample, or scores, are not finite.

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
        """Answer a question in stages, each after another part of the train rows.

        Parameters
        ----------
        question : Question
            The sample, and the options of its answer.
        stages : int, optional
            Number of parts; by default one for small stores, up to 20 for large ones.
        go_on : callable
            Called between steps; it raises when nobody waits for the answer any more.

        Yields
        ------
        Answer
            Answers so far; the last one is final.
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
        """Describe the origin of scores, without a path of this machine.

        Parameters
        ----------
        epochs : sequence of epochs
            Epochs of the scores.
        method : str
            Name of their method.

        Returns
        -------
        dict
            Name of the store, projection and dimension, train split and rows, a digest of both splits'
            rows and masks (``state``), damping, hashes of the weights by epoch, and the version of the
            package.
        """
        pairs = {epoch: self._pairs[epoch] for epoch in epochs}
        state = self._stored.state(epochs)
        return provenance_of(self.store, pairs, method, self._kernels.c(method), state)

"""The job of a query, with its models and data sets."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trakstore.methods.epochs import EpochPair
from trakstore.passes.memory import memory_budget
from trakstore.report.sample_source import sample_source
from trakstore.serve.new_samples import NewSamples
from trakstore.serve.query_options import QueryOptions
from trakstore.serve.sample_finder import SampleFinder
from trakstore.serve.samples_to_show import SamplesToShow
from trakstore.serve.stored_samples import StoredSamples
from trakstore.serve.token_scores import TokenScorer
from trakstore.storage.layout import Epoch
from trakstore.storage.store import FeatureStore

if TYPE_CHECKING:  # they need torch
    from trakstore.features import Job
    from trakstore.features.query_rows import LoadedModels


@dataclass(frozen=True)
class ServedJob:
    """A job with the parts that a query of some epochs uses.

    Attributes
    ----------
    options : QueryOptions
    job : Job or None
    models : LoadedModels or None
    lock : lock
        Held while data sets are read, since other people wrote these.
    """

    options: QueryOptions
    job: Job | None = None
    models: LoadedModels | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def loaded(
        self, job: Job | str | None, store: FeatureStore, pairs: Mapping[Epoch, EpochPair]
    ) -> ServedJob:
        """Load a job and its models; models of the same job that are loaded already are reused."""
        if job is None:
            return self
        from trakstore.features.load_job import load_job
        from trakstore.features.query_rows import LoadedModels

        given = load_job(job) if isinstance(job, str) else job
        models = LoadedModels(
            given,
            store,
            {epoch: pair.known_weights for epoch, pair in pairs.items()},
            self.options.device,
            memory_limit=memory_budget(self.options.memory_limit),
            loaded=self.models if given is self.job else None,
        )
        return ServedJob(self.options, given, models, self.lock)

    def finder(self, stored: StoredSamples, targets: str) -> SampleFinder:
        """Make the finder of samples; raise if the data sets are not those of the stored splits."""
        splits = [stored.first.target.stored, stored.first.train.stored]
        show = SamplesToShow(sample_source(self.job, self.options.render, splits), self.lock)
        if self.job is None:
            return SampleFinder(stored, show)
        new = NewSamples.of(self.job, targets, self.options.prepare, self.lock)
        return SampleFinder(stored, show, self.job, self.models, new)

    def scorer(self) -> TokenScorer | None:
        """Make the scorer of tokens; None if the output is not made of tokens."""
        asked = self.options
        return TokenScorer.of(self.job, asked.train, self.models, asked.render, self.lock)

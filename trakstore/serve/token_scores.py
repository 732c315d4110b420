"""Scores of the tokens of an answer's entries, computed while the caller waits."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from trakstore.errors import TrakStoreError
from trakstore.quantities import as_whole
from trakstore.report.sample_source import Render, hides_tokens, tokenizer_of
from trakstore.report.scored_tokens import scored_tokens
from trakstore.scores.factored import Scores
from trakstore.serve.answer_data import Entry
from trakstore.serve.answer_entries import Entries
from trakstore.serve.question import BadQuestionError
from trakstore.serve.stored_samples import StoredSamples

if TYPE_CHECKING:  # they need torch
    from trakstore.features import Job
    from trakstore.features.query_rows import LoadedModels

MOST_SCORED = 20  # most entries of a list whose tokens are scored
MOST_PASSES = 20_000  # most passes for the tokens of a list: one for each token and epoch


@dataclass(frozen=True)
class TokenScorer:
    """Maker of the scores of tokens.

    Attributes
    ----------
    job : Job
    models : LoadedModels
    tokenizer : transformers.PreTrainedTokenizerBase or None
    lock : lock
        Held while the data set is read, since other people wrote it.
    hidden : bool
        True if a function decides what is shown: tokens are then named by their numbers.
    """

    job: Job
    models: LoadedModels
    tokenizer: Any
    lock: threading.Lock
    hidden: bool

    @classmethod
    def of(
        cls,
        job: Job | None,
        train: str,
        models: LoadedModels | None,
        render: Render | str | None,
        lock: threading.Lock,
    ) -> TokenScorer | None:
        """Make the scorer for a job whose output is made of tokens; None for any other job.

        Also None if the train rows are not samples of the job, but tokens of them.
        """
        if job is None or models is None or train not in job.datasets:
            return None
        from trakstore.features.outputs.tokens import need_tokens

        try:
            need_tokens(job.output)  # type: ignore[arg-type]
        except TrakStoreError:
            return None
        return cls(job, models, tokenizer_of(job, render), lock, hides_tokens(render))

    def of_entries(
        self, count: int, scores: Scores, stored: StoredSamples, go_on: Callable[[], None]
    ) -> Callable[[Entries], Entries]:
        """Return a function that scores and shows the tokens of the first entries of a list."""

        def scored(entries: Entries) -> Entries:
            self._need_few(entries[:count], scores, stored, go_on)
            first = [self._scored(one, scores, stored, go_on) for one in entries[:count]]
            return (*first, *entries[count:])

        return scored

    def _scored(
        self, entry: Entry, scores: Scores, stored: StoredSamples, go_on: Callable[[], None]
    ) -> Entry:
        sample = self._sample(entry, stored)
        column = int(stored.columns_of_train(np.array([entry.position]))[0])
        tokens = scored_tokens(self.models, scores, column, sample, self.tokenizer, go_on)
        # If an entry shows nothing, its text is hidden from the caller, and so are its tokens.
        if self.hidden or entry.shown is None:
            tokens = tokens.without_text()
        shown = None if entry.shown is None else tokens.shown(entry.shown)
        return replace(entry, tokens=tokens, shown=shown)

    def _need_few(
        self, entries: Entries, scores: Scores, stored: StoredSamples, go_on: Callable[[], None]
    ) -> None:
        """Raise a :class:`BadQuestionError` if some entries have too many tokens."""
        passes = 0
        for entry in entries:
            go_on()
            own = self.models.tokens(self._sample(entry, stored), scores.epochs[0])
            passes += len(own.numbers) * len(scores.epochs)
        if passes > MOST_PASSES:
            raise BadQuestionError(
                f"tokens of {len(entries)} samples at {len(scores.epochs)} epochs take {passes:,} "
                f"passes (one for each token and epoch); {MOST_PASSES:,} at most are made for a list: "
                f"ask for tokens of fewer entries, or for fewer epochs"
            )

    def _sample(self, entry: Entry, stored: StoredSamples) -> Any:
        with self.lock:
            return self.job.datasets[stored.train][entry.position]


def asked_tokens(count: Any, scorer: TokenScorer | None) -> int:
    """Return the number of entries of each list whose tokens are asked for.

    Raises
    ------
    BadQuestionError
        When no models can score them, or they are too many.
    """
    try:
        entries = as_whole(count, "tokens", 0, MOST_SCORED)
    except TrakStoreError as error:
        raise BadQuestionError(str(error)) from None
    if entries and scorer is None:
        raise BadQuestionError(
            "tokens have no scores here: that needs the job, and an output that is made of tokens, as "
            "language models have it"
        )
    return entries

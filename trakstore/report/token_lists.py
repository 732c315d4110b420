"""Texts of the first entries of a report's lists, shaded by the scores of their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import TrakStoreError
from trakstore.methods.epochs import EpochPair
from trakstore.passes.memory import memory_budget
from trakstore.report.sample import Shown
from trakstore.report.sample_source import Render, hides_tokens, tokenizer_of
from trakstore.report.scored_tokens import scored_tokens
from trakstore.scores.factored import Scores
from trakstore.storage.store import FeatureStore

if TYPE_CHECKING:  # they need torch
    from trakstore.features import Job
    from trakstore.features.query_rows import LoadedModels

__all__ = ["TokenLists"]


@dataclass(frozen=True)
class TokenLists:
    """Shading of train samples' tokens by their parts of the score with one target.

    Attributes
    ----------
    count : int
        Number of entries of each list that are shaded.
    models : LoadedModels
    samples : map-style data set
        Samples of the train split.
    masked : ndarray of int64
        Positions of train rows without scores.
    tokenizer : transformers.PreTrainedTokenizerBase or None
    letters : int
        Most characters of a text.
    hidden : bool
        True if a function decides what is shown: tokens are then named by their numbers.
    """

    count: int
    models: LoadedModels
    samples: Any
    masked: NDArray[np.int64]
    tokenizer: Any
    letters: int
    hidden: bool

    @classmethod
    def of(
        cls,
        count: int,
        job: Job | str,
        store: FeatureStore,
        pairs: Sequence[EpochPair],
        render: Render | str | None,
        letters: int,
        memory_limit: int | str | None,
    ) -> TokenLists:
        """Load the models of a job at some epochs.

        Raises
        ------
        TrakStoreError
            When the job's output is not made of tokens, or train rows are not samples of the job.
        """
        from trakstore.features.load_job import load_job
        from trakstore.features.outputs import as_output
        from trakstore.features.outputs.tokens import need_tokens
        from trakstore.features.query_rows import LoadedModels

        loaded = load_job(job) if isinstance(job, str) else job
        need_tokens(as_output(loaded.output))
        train = pairs[-1].train
        if train.stored.name not in loaded.datasets:
            raise TrakStoreError(
                f"tokens have scores where train rows are samples of the job; {train.stored.name!r} "
                f"is none of its data sets ({', '.join(loaded.datasets)}): leave tokens out"
            )
        known = {pair.epoch: pair.known_weights for pair in pairs}
        models = LoadedModels(loaded, store, known, memory_limit=memory_budget(memory_limit))
        samples, tokenizer = loaded.datasets[train.stored.name], tokenizer_of(loaded, render)
        hidden = hides_tokens(render)
        return cls(count, models, samples, train.masked, tokenizer, letters, hidden)

    def shown(self, position: int, scores: Scores, before: Shown | None) -> Shown:
        """Return the text of a train sample, shaded.

        Parameters
        ----------
        position : int
            Row of the stored train split.
        scores : Scores
            Scores of the one target, shape (1, n).
        before : Shown, optional
            The sample as shown without scores: its image is kept, and everything if the text is hidden.
        """
        # Scores have columns for unmasked rows only; positions count masked rows too.
        column = position - int(np.searchsorted(self.masked, position))
        sample = self.samples[position]
        tokens = scored_tokens(self.models, scores, column, sample, self.tokenizer)
        tokens = tokens.without_text() if self.hidden else tokens
        return tokens.shown(before, self.letters)

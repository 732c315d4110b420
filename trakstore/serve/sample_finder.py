"""Finder of the sample that a question is about, stored or made from the request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from trakstore.report.sample import show_sample
from trakstore.serve.asked_sample import AskedSample, taken_columns
from trakstore.serve.new_samples import NewSamples, fresh_rows
from trakstore.serve.question import BadQuestionError, Question
from trakstore.serve.samples_to_show import SamplesToShow
from trakstore.serve.stored_samples import StoredSamples
from trakstore.storage.layout import Epoch

if TYPE_CHECKING:  # they need torch
    from trakstore.features import Job
    from trakstore.features.query_rows import LoadedModels


@dataclass(frozen=True)
class SampleFinder:
    """Finder of samples with their columns.

    Attributes
    ----------
    stored : StoredSamples
    show : SamplesToShow
    job : Job or None
    models : LoadedModels or None
        None without a job.
    new : NewSamples or None
        None without a job.
    """

    stored: StoredSamples
    show: SamplesToShow
    job: Job | None = None
    models: LoadedModels | None = None
    new: NewSamples | None = None

    def find(
        self, question: Question, epochs: tuple[Epoch, ...], go_on: Callable[[], None]
    ) -> AskedSample:
        """Return the sample of a question with its columns at some epochs.

        Raises
        ------
        BadQuestionError
            When there is no such sample, or none can be made.
        """
        if question.target is not None:
            return self._of_store(question, epochs)
        return self._made(question, epochs, go_on)

    def _of_store(self, question: Question, epochs: tuple[Epoch, ...]) -> AskedSample:
        stored, (split, row) = self.stored, self.stored.place(question)
        ids, position = stored.ids_of(split).values[row : row + 1], stored.position(split, row)
        asked = AskedSample(
            stored.columns(split, row, epochs),
            ids,
            ids.tolist()[0],
            split,
            stored.label(split, row),
        )
        if not question.show:
            return asked
        shown = self.show(split, position, asked.target)
        return replace(asked, shown=shown, predicted=self._predicted(split, position, epochs[-1]))

    def _predicted(self, split: str, position: int, epoch: Epoch) -> int | None:
        """Predict the class of a stored sample; None if the job has no models or classes."""
        if self.models is None or self.job is None:
            return None
        if split not in self.job.datasets:
            return None  # rows of tokens have no classes
        with self.show.lock:
            sample = self.job.datasets[split][position]
        return self.models.predicted(sample, epoch)

    def _made(
        self, question: Question, epochs: tuple[Epoch, ...], go_on: Callable[[], None]
    ) -> AskedSample:
        """Make a new sample, and compute its features."""
        if self.models is None or self.new is None:
            raise BadQuestionError("only samples of the store can be asked about: there is no job")
        models, last = self.models, epochs[-1]
        sample = self.new.make(question, lambda one: models.predicted(one, last))
        computed = fresh_rows(models, sample, epochs, go_on)
        label = computed[last].get("label")
        return AskedSample(
            {epoch: taken_columns(columns) for epoch, columns in computed.items()},
            np.zeros(1, dtype=np.int64),
            label=None if label is None else int(label[0]),
            predicted=models.predicted(sample, last),
            shown=show_sample(question.text or sample) if question.show else None,
        )

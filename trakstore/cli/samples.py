"""Where the samples that a report shows come from: a job's data sets, or a user's function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import NotFoundError, SpecMismatchError, TrakStoreError, did_you_mean
from trakstore.named import blamed_on, load_named
from trakstore.passes.rows import whole_column
from trakstore.report.sample import Shown, show_sample
from trakstore.storage.layout import Epoch
from trakstore.storage.split import Split

__all__ = ["SampleSource", "StoredSample", "sample_source"]


class StoredSample(NamedTuple):
    """What a render function gets where there is no job: which sample it is."""

    split: str
    id: int | str
    row: int


Predict: TypeAlias = Callable[[Epoch, str, NDArray[np.int64]], "NDArray[np.int64] | None"]


@dataclass
class SampleSource:
    """Shows samples; each is read once, however many lists it is in.

    Attributes
    ----------
    read : callable
        What is to be shown of a sample; None for its id alone.
    known : dict
        What was shown, by split and row.
    tokens : bool
        Whether there were samples that are token ids, which say nothing to people.
    predict : callable
        Of an epoch, a split and rows: the classes that the model predicts for them; None where there
        is no model, or it has no classes.
    """

    read: Callable[[StoredSample], Any]
    predict: Predict = lambda *_: None
    known: dict[tuple[str, int], Shown | None] = field(default_factory=dict)
    tokens: bool = False

    def __call__(self, split: str, row: int, sample_id: Any) -> Shown | None:
        key = (split, row)
        if key not in self.known:
            found = self.read(StoredSample(split, sample_id, row))
            self.tokens = self.tokens or _is_tokens(found)
            self.known[key] = None if found is None else show_sample(found)
        return self.known[key]


def _is_tokens(sample: Any) -> bool:
    """Whether a sample is a mapping with token ids, or a row of integers; alone or as an input."""
    if isinstance(sample, tuple | list) and sample and hasattr(sample[0], "__array__"):
        sample = sample[0]
    if isinstance(sample, Mapping):
        return "input_ids" in sample
    return getattr(sample, "ndim", None) == 1 and "int" in str(getattr(sample, "dtype", ""))


def sample_source(job: str | None, render: str | None, splits: list[Split]) -> SampleSource:
    """What shows the samples of some splits.

    Parameters
    ----------
    job : str, optional
        Name of the job whose data sets hold them.
    render : str, optional
        Name of a function that gives a text, an image or a figure of a sample: of the data set's,
        or, without a job, of a :class:`StoredSample`.
    splits : list of Split
        Those that are shown, at one epoch.

    Raises
    ------
    NotFoundError
        A name that is not there, a data set that the job does not have.
    SpecMismatchError
        The job's data set is not the one that the features were made from.
    """
    draw = None if render is None else _function(render)
    if job is None:
        return SampleSource(draw or (lambda _: None))
    from trakstore.features import load_job
    from trakstore.features.predictions import predicted_classes

    loaded = load_job(job)
    datasets = loaded.datasets
    for split in splits:
        _check_dataset(datasets, split, job)

    def read(one: StoredSample) -> Any:
        sample = datasets[one.split][one.row]
        return sample if draw is None else draw(sample)

    return SampleSource(read, partial(predicted_classes, loaded))


def _function(name: str) -> Callable[[Any], Any]:
    found = load_named(name, "render")
    if not callable(found):
        raise TrakStoreError(
            f"{name} is a {type(found).__name__}; --render names a function of a sample"
        )

    def function(sample: Any) -> Any:
        with blamed_on(name):
            return found(sample)

    return function


def _check_dataset(datasets: Any, split: Split, job: str) -> None:
    """Other samples beside the scores would be worse than none."""
    from trakstore.features.fingerprint import dataset_fingerprint, dataset_rows

    if split.name not in datasets:
        raise NotFoundError(
            f"{job} has no data set {split.name!r}{did_you_mean(split.name, datasets)}"
        )
    dataset, remedy = datasets[split.name], "name the job that was featurized"
    rows = dataset_rows(dataset)
    if rows != split.rows:
        raise SpecMismatchError(
            f"{split.name} of {job} has {rows} samples, the store has {split.rows}: {remedy}"
        )
    ids = whole_column(split.column("sample_id"))
    stored = split.spec.dataset
    if stored is not None and dataset_fingerprint(dataset, ids) != stored:
        raise SpecMismatchError(
            f"{split.name} of {job} holds other samples than the store was made from: {remedy}"
        )

"""Sources of the samples on a page: a job's data sets, or a user's function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from numbers import Number
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import NotFoundError, SpecMismatchError, TrakStoreError, did_you_mean
from trakstore.named import call_with_sample, load_named
from trakstore.passes.rows import whole_column
from trakstore.quantities import shown
from trakstore.report.sample import LETTERS, Shown, show_sample, shown_text
from trakstore.report.text_parts import is_tokenizer, string_parts, token_parts
from trakstore.report.token_targets import TokenTargets, is_of_tokens
from trakstore.storage.columns import sample_ids
from trakstore.storage.layout import Epoch, own_split
from trakstore.storage.split import Split

if TYPE_CHECKING:  # it needs torch
    from trakstore.features import Job


class StoredSample(NamedTuple):
    """Place of a sample, which a render function is given without a job."""

    split: str
    id: int | str
    row: int


Predict: TypeAlias = Callable[[Epoch, str, NDArray[np.int64]], "NDArray[np.int64] | None"]
Render: TypeAlias = Callable[[Any], Any]


@dataclass
class SampleSource:
    """Source of samples as a page shows them; each is read once, however many lists have it.

    Attributes
    ----------
    read : callable
        Function of a :class:`StoredSample` that returns an object to show; None for its id alone.
    predict : callable
        Function that returns the classes predicted for an epoch, a split and rows; None if there is no
        model, or it has no classes.
    known : dict
        Samples that were shown before, by split and row.
    token_ids : bool
        True once a sample was token ids, which people cannot read.
    letters : int
        Most characters of a text.
    """

    read: Callable[[StoredSample], Any]
    predict: Predict = lambda *_: None
    known: dict[tuple[str, int], Shown | None] = field(default_factory=dict)
    token_ids: bool = False
    letters: int = LETTERS

    def __call__(self, split: str, row: int, sample_id: Any) -> Shown | None:
        # A sample may be in many lists, and may be a file that is decoded whenever it is read.
        key = (split, row)
        if key not in self.known:
            sample = self.read(StoredSample(split, sample_id, row))
            self.token_ids = self.token_ids or _has_token_ids(sample)
            self.known[key] = None if sample is None else show_sample(sample, self.letters)
        return self.known[key]

    @property
    def tells_prompts(self) -> bool:
        """True once a text was shown that has both prompt and learned tokens."""
        parts = (part for one in self.known.values() if one is not None for part in one.parts)
        return any(part.kind == "learned" for part in parts)


def _has_token_ids(sample: Any) -> bool:
    """True for a mapping with token ids and no text, or a row of integers, alone or as the input."""
    if isinstance(sample, tuple | list) and sample and hasattr(sample[0], "__array__"):
        sample = sample[0]
    if isinstance(sample, Mapping):
        return "input_ids" in sample and not string_parts(sample)
    return getattr(sample, "ndim", None) == 1 and "int" in str(getattr(sample, "dtype", ""))


def sample_source(
    job: Job | str | None,
    render: Render | str | None,
    splits: Sequence[Split],
    letters: int = LETTERS,
) -> SampleSource:
    """Make the source of the samples of some splits.

    Parameters
    ----------
    job : Job or str, optional
        Job whose data sets hold the samples, or its name.
    render : callable, tokenizer or str, optional
        Function that returns a text, an image or a figure for a sample of the data set or, without a
        job, for a :class:`StoredSample`; or a tokenizer, which decodes token ids; or the name of
        either. By default the tokenizer of the job's collator, if it has one.
    splits : sequence of Split
        Splits whose samples are shown, at one epoch.
    letters : int
        Most characters of a text.

    Raises
    ------
    NotFoundError
        When a name does not exist, or the job lacks a data set.
    SpecMismatchError
        When the job's data set is not the one from which the features were made.
    """
    draw = None if render is None else _checked(render, letters)
    if job is None:
        return SampleSource(draw or (lambda _: None), letters=letters)
    from trakstore.features import load_job
    from trakstore.features.predictions import predicted_classes

    loaded = load_job(job) if isinstance(job, str) else job
    datasets = loaded.datasets
    decoder = tokenizer_of(loaded, render)
    if draw is None and decoder is not None:
        draw = _checked(decoder, letters)
    for split in splits:
        _check_dataset(datasets, loaded.ids, split, name_of(job))
    tokens = {one.name: TokenTargets.of(one, loaded) for one in splits if is_of_tokens(one.name)}

    def read(one: StoredSample) -> Any:
        if one.split in tokens:
            return tokens[one.split].shown(one.id, decoder, draw, letters)
        sample = datasets[one.split][one.row]
        return sample if draw is None else draw(sample)

    def predict(epoch: Epoch, split: str, rows: NDArray[np.int64]) -> NDArray[np.int64] | None:
        return None if split in tokens else predicted_classes(loaded, epoch, split, rows)

    return SampleSource(read, predict, letters=letters)


def tokenizer_of(job: Job, render: Render | str | None) -> Any:
    """Return the tokenizer that ``render`` is or names, by default that of the job's collator.

    Return None if there is none, or ``render`` is a function: whatever it does not show stays hidden.
    """
    given = load_named(render, "render") if isinstance(render, str) else render
    own = getattr(job.collate, "tokenizer", None) if given is None else given
    return own if is_tokenizer(own) else None


def hides_tokens(render: Render | str | None) -> bool:
    """Tell whether a function decides what is shown of a sample, so that its tokens are hidden.

    Examples
    --------
    >>> hides_tokens(None), hides_tokens(lambda sample: "hidden")
    (False, True)
    """
    given = load_named(render, "render") if isinstance(render, str) else render
    return given is not None and not is_tokenizer(given)


def name_of(given: object) -> str:
    """Name a job or a render function for people.

    Examples
    --------
    >>> name_of("jobs.py:digits"), name_of(name_of)
    ('jobs.py:digits', 'name_of')
    """
    if isinstance(given, str):
        return given
    return str(getattr(given, "__name__", f"the {type(given).__name__}"))


def _checked(render: Any, letters: int) -> Render:
    """Return the render function, wrapped so that its errors and wrong answers name it."""
    function = load_named(render, "render") if isinstance(render, str) else render
    if is_tokenizer(function):
        function = partial(_text_of_tokens, function, letters)
    if not callable(function):
        raise TrakStoreError(
            f"render must be a function of a sample, or its name; {shown(render)} is no function"
        )
    name = name_of(render)

    def blamed(sample: Any) -> Any:
        made = call_with_sample(function, name, "render", sample)
        if not _can_be_shown(made):
            raise TrakStoreError(
                f"{name} returned {shown(made)}, which cannot be shown: a render returns a text, an "
                f"image (an array, a PIL image), a figure, a dict of columns, or None"
            )
        return made

    return blamed


def _text_of_tokens(tokenizer: Any, letters: int, sample: Any) -> Shown:
    """Decode a sample's tokens; a sample without tokens is returned as it is."""
    if isinstance(sample, StoredSample):
        raise TrakStoreError(
            "a tokenizer decodes the samples of a job: name that too (job=, --job)"
        )
    parts = token_parts(sample, tokenizer)
    return show_sample(sample, letters) if parts is None else shown_text(parts, letters)


def _can_be_shown(made: Any) -> bool:
    """Tell whether something is of a kind that a render function may return."""
    kinds = (str, Mapping, Number, Shown)
    drawn = ("savefig", "getbands", "__array__")  # a figure, an image of PIL, an array or tensor
    return made is None or isinstance(made, kinds) or any(hasattr(made, one) for one in drawn)


def _check_dataset(datasets: Any, own_ids: Mapping[str, Any], split: Split, job: str) -> None:
    """Refuse a data set whose samples are not those of the features."""
    from trakstore.features.fingerprint import dataset_fingerprint, dataset_rows

    of_tokens = is_of_tokens(split.name)
    own = own_split(split.name) if of_tokens else split.name
    if own not in datasets:
        raise NotFoundError(f"{job} has no data set {own!r}{did_you_mean(own, datasets)}")
    dataset, remedy = datasets[own], "name the job that was featurized"
    # The number is compared first: hashing reads some of the samples.
    rows = dataset_rows(dataset)
    if rows != split.rows and not of_tokens:
        raise SpecMismatchError(
            f"{split.name} of {job} has {rows} samples, the store has {split.rows}: {remedy}"
        )
    stored = split.spec.dataset
    if of_tokens:
        # What follows the hash concerns tokens, and ids of rows are not those of samples.
        stored = None if stored is None else stored.partition("#")[0]
        ids = sample_ids(own_ids.get(own), rows)
    else:
        ids = whole_column(split.column("sample_id"))
    if stored is not None and dataset_fingerprint(dataset, ids) != stored:
        raise SpecMismatchError(
            f"{split.name} of {job} holds other samples than the store was made from: {remedy}"
        )

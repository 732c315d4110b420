"""Samples of a job made from what people type or drop: a text, an image, values."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trakstore.errors import TrakStoreError
from trakstore.named import blamed_on, load_named
from trakstore.report.text_parts import is_tokenizer
from trakstore.serve.like_example import PREPARE, like, typed
from trakstore.serve.opened_images import opened_image, pixels_of
from trakstore.serve.question import BadQuestionError, Question
from trakstore.serve.token_bounds import TokenBounds
from trakstore.storage.layout import Epoch

if TYPE_CHECKING:  # it needs torch
    from trakstore.features.query_rows import LoadedModels

log = logging.getLogger("trakstore")

_SEEN = 8  # samples whose values show the range of images
_CLASS = ("label", "labels")  # fields that hold the class of a sample


@dataclass(frozen=True)
class _Draft:
    """A sample that may lack its class yet.

    Attributes
    ----------
    with_class : callable
        Function that returns the sample with a class.
    has_class : bool
        Whether the samples of the job have a class.
    """

    with_class: Callable[[Any], Any]
    has_class: bool = False


@dataclass(frozen=True)
class NewSamples:
    """Maker of samples like those of a data set.

    Attributes
    ----------
    dataset : map-style data set
        Samples as the model takes them.
    tokenizer : transformers.PreTrainedTokenizerBase, optional
        Tokenizer that makes token ids from a text.
    prepare : callable, optional
        Function that returns a sample for a dict with ``text``, ``image`` (a PIL image) or ``sample``
        (JSON values), and ``label``; by default samples are made like the data set's first one.
    model : torch.nn.Module, optional
        Model that takes the samples: its config says how long they may be.
    lock : lock
        Held while the data set, the tokenizer or ``prepare`` is used, since other people wrote these.
    """

    dataset: Any
    tokenizer: Any = None
    prepare: Callable[[dict[str, Any]], Any] | None = None
    model: Any = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, job: Any, split: str, prepare: Any, lock: threading.Lock) -> NewSamples:
        """Make it from the data set of a split of a job, and the tokenizer of the job's collator."""
        if isinstance(prepare, str):
            prepare = load_named(prepare, "prepare")
        if prepare is not None and not callable(prepare):
            raise TrakStoreError(f"prepare must be a function of a dict, got {prepare!r}")
        dataset = job.datasets.get(split) or next(iter(job.datasets.values()))
        tokenizer = getattr(job.collate, "tokenizer", None)
        tokenizer = tokenizer if is_tokenizer(tokenizer) else None
        return cls(dataset, tokenizer, prepare, job.model, lock)

    @property
    def kinds(self) -> list[str]:
        """Ways to describe a sample, as far as samples can be made from them."""
        if self.prepare is not None:
            return ["text", "image"]
        with self.lock:
            example = self.dataset[0]
        value = example[0] if isinstance(example, tuple | list) and example else example
        words = value.get("text") if isinstance(value, Mapping) else value
        tokens = isinstance(value, Mapping) and "input_ids" in value and self.tokenizer is not None
        takes_text = tokens or isinstance(words, str)
        return [*["text"][: int(takes_text)], *["image"][: int(_is_image(value))]]

    def make(self, question: Question, predict: Callable[[Any], int | None]) -> Any:
        """Make the sample that a question is about.

        Parameters
        ----------
        question : Question
        predict : callable
            Function that returns the model's class for a sample, or None; used for a sample without a
            label.

        Raises
        ------
        BadQuestionError
            When the question cannot be turned into a sample of this job.
        """
        # The model that predicts may be busy, and others read the data set meanwhile: no lock is held
        # here.
        with self.lock:
            draft = self._draft(question)
        label = question.label
        if not draft.has_class:
            if label is not None and self.prepare is None:
                raise BadQuestionError("samples of this job have no class: leave label out")
            return draft.with_class(None)
        # The class matters: the gradient is that of the answer which the label gives.
        if label is None:
            label = predict(draft.with_class(0))
        if label is None:
            raise BadQuestionError("samples of this job have a label that is no class: give label")
        return draft.with_class(label)

    def _draft(self, question: Question) -> _Draft:
        if self.prepare is not None:
            return _whole(_prepared(self.prepare, question))
        example = self.dataset[0]
        if question.sample is not None:
            if question.label is not None:
                raise BadQuestionError("a sample says its own label: leave label= out")
            sample = like(example, question.sample, "sample")
            self._bounds.check(sample, example)
            return _whole(sample)
        make = self._text if question.text is not None else self._image
        if not isinstance(example, tuple | list):
            return make(question, example)
        if len(example) != 2:
            raise BadQuestionError(
                f"samples of this job have {len(example)} parts: give sample, or serve with {PREPARE}"
            )
        value = make(question, example[0])
        if value.has_class:
            raise BadQuestionError(
                f"samples of this job have two labels: give sample, or serve with {PREPARE}"
            )
        pair: Any = type(example)
        return _Draft(
            lambda label: pair((value.with_class(None), like(example[1], label, "label"))), True
        )

    @property
    def _bounds(self) -> TokenBounds:
        return TokenBounds.of(self.model, self.tokenizer)

    def _text(self, question: Question, example: Any) -> _Draft:
        text = str(question.text)
        if isinstance(example, str):
            return _whole(text)
        if isinstance(example, Mapping) and "input_ids" in example and self.tokenizer is not None:
            return self._tokens(text, example)
        if isinstance(example, Mapping) and isinstance(example.get("text"), str):
            return _of_fields(example, {"text": text})
        raise BadQuestionError(
            f"samples of this job are not made of texts: serve it with {PREPARE}"
        )

    def _tokens(self, text: str, example: Mapping[str, Any]) -> _Draft:
        values = dict(self.tokenizer(text))
        ids = list(values["input_ids"])
        most = self._bounds.tokens
        if not 1 <= len(ids) <= most:
            raise BadQuestionError(f"the text has {len(ids)} tokens; 1 to {most} are needed")
        self._bounds.check(values, {})
        # The whole text is what the model would be asked to produce.
        if _is_row(example.get("labels"), len(example["input_ids"])):
            values["labels"] = ids
        made = {
            name: typed(example[name], values[name], name) for name in values if name in example
        }
        # Texts beside the tokens stay in the sample, but do not reach the model.
        beside = {name: text for name, value in example.items() if isinstance(value, str)}
        return _of_fields(example, {**beside, **made})

    def _image(self, question: Question, example: Any) -> _Draft:
        if not _is_image(example):
            raise BadQuestionError(
                f"samples of this job are not made of images: serve it with {PREPARE}"
            )
        shape = tuple(int(one) for one in example.shape)
        first = len(shape) == 3 and shape[0] in (1, 3)
        height, width = shape[1:] if first else shape[:2]
        channels = 1 if len(shape) == 2 else shape[0] if first else shape[2]
        if channels not in (1, 3):
            raise BadQuestionError(
                f"samples of this job have {channels} channels: serve it with {PREPARE}"
            )
        values = pixels_of(opened_image(question.image), channels, (width, height))
        values = np.moveaxis(values, -1, 0) if first else values
        return _whole(typed(example, (values / self._unit(example)).reshape(shape), "image"))

    def _unit(self, example: Any) -> float:
        """Return the unit of pixels, by which 255 is divided: samples hold bytes or shares."""
        if "uint8" in str(example.dtype):
            return 1.0
        some = [self.dataset[at] for at in range(min(_SEEN, len(self.dataset)))]
        arrays = [np.asarray(one[0] if isinstance(one, tuple | list) else one) for one in some]
        low, high = min(a.min() for a in arrays), max(a.max() for a in arrays)
        if low < 0 or high > 1:
            raise BadQuestionError(
                f"images of this job have values from {low:.3g} to {high:.3g}, and how they were made "
                f"is not known: serve it with {PREPARE}"
            )
        return 255.0


def try_sample(
    models: LoadedModels,
    dataset: Any,
    position: int,
    split: str,
    epochs: Sequence[Epoch],
    lock: threading.Lock,
) -> None:
    """Compute features of a sample that has some in the store; a failure is logged."""
    try:
        with lock:
            sample = dataset[position]
        models.rows(sample, epochs)
    except TrakStoreError as error:
        log.warning("features of the first sample of %s failed: %s", split, error)


def fresh_rows(
    models: LoadedModels, sample: Any, epochs: Sequence[Epoch], go_on: Callable[[], None]
) -> dict[Epoch, dict[str, NDArray[Any]]]:
    """Compute the columns of a new sample at some epochs.

    Raises
    ------
    BadQuestionError
        When none of its tokens counts, so that it has no loss.
    """
    if models.of_tokens and not len(models.tokens(sample, epochs[0]).numbers):
        raise BadQuestionError(
            "no token of the sample counts: it needs a token behind the first one that is predicted, "
            "with a label other than -100"
        )
    return models.rows(sample, epochs, go_on)


def _is_image(value: Any) -> bool:
    return hasattr(value, "shape") and len(value.shape) in (2, 3)


def _prepared(prepare: Callable[[dict[str, Any]], Any], question: Question) -> Any:
    given: dict[str, Any] = {"label": question.label}
    if question.text is not None:
        given["text"] = question.text
    elif question.image is not None:
        given["image"] = opened_image(question.image)
    else:
        given["sample"] = question.sample
    with blamed_on("the prepare function"):
        return prepare(given)


def _whole(sample: Any) -> _Draft:
    return _Draft(lambda _: sample)


def _is_row(value: Any, length: int) -> bool:
    """Tell whether a value is a row of that many integers, a label for each token."""
    if value is None or isinstance(value, str):
        return False
    row = np.asarray(value)
    return row.shape == (length,) and row.dtype.kind in "iu"


def _of_fields(example: Mapping[str, Any], made: Mapping[str, Any]) -> _Draft:
    """Take the fields that could be made; the class is left open, and no other field is known."""
    classes = [name for name in example if name in _CLASS and name not in made]
    classes = [name for name in classes if not np.shape(example[name])]
    unknown = [str(name) for name in example if name not in made and name not in classes]
    if unknown:
        raise BadQuestionError(
            f"samples of this job have {', '.join(unknown)}, which a text does not say: give sample, "
            f"or serve with {PREPARE}"
        )

    def with_class(label: Any) -> dict[str, Any]:
        given = {name: like(example[name], label, "label") for name in classes}
        return {name: given[name] if name in given else made[name] for name in example}

    return _Draft(with_class, bool(classes))

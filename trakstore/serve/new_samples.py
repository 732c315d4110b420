"""Samples of a job made of what people type or drop: a text, an image, values."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np

from trakstore.errors import TrakStoreError
from trakstore.named import blamed_on, load_named
from trakstore.report.text_parts import is_tokenizer
from trakstore.serve.question import BadQuestionError, Question

MOST_PIXELS = 2**24  # of an image that is opened
_SEEN = 8  # samples whose values tell the range of images
_PREPARE = "a function that makes samples (prepare=, --prepare)"


@dataclass(frozen=True)
class NewSamples:
    """Maker of samples that are like those of a data set.

    Attributes
    ----------
    dataset : map-style data set
        Some samples as the model takes them.
    tokenizer : transformers.PreTrainedTokenizerBase, optional
        What makes token ids of a text.
    prepare : callable, optional
        Function of a dict with ``text``, ``image`` (a PIL image) or ``sample`` (values of JSON), and
        ``label``, that returns a sample; by default they are made like the data set's first sample.
    """

    dataset: Any
    tokenizer: Any = None
    prepare: Callable[[dict[str, Any]], Any] | None = None

    @classmethod
    def of(cls, job: Any, split: str, prepare: Any) -> NewSamples:
        """Take the data set of a split that the job has, and the tokenizer of its collator."""
        if isinstance(prepare, str):
            prepare = load_named(prepare, "prepare")
        if prepare is not None and not callable(prepare):
            raise TrakStoreError(f"prepare must be a function of a dict, got {prepare!r}")
        dataset = job.datasets.get(split) or next(iter(job.datasets.values()))
        tokenizer = getattr(job.collate, "tokenizer", None)
        return cls(dataset, tokenizer if is_tokenizer(tokenizer) else None, prepare)

    @property
    def kinds(self) -> list[str]:
        """Ways to say what a sample is, as far as samples can be made of it."""
        if self.prepare is not None:
            return ["text", "image"]
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
            Function of a sample that gives the model's class of it, or None; for a sample without a
            label.

        Raises
        ------
        BadQuestionError
            It cannot be made a sample of this job.
        """
        if self.prepare is not None:
            return _prepared(self.prepare, question)
        example = self.dataset[0]
        if question.sample is not None:
            sample = _like(example, question.sample, "sample")
            self._check_tokens(sample)
            return sample
        make = self._text if question.text is not None else self._image
        if not isinstance(example, tuple | list):
            return make(question, example)
        if len(example) != 2:
            raise BadQuestionError(
                f"samples of this job have {len(example)} parts: give sample, or serve with {_PREPARE}"
            )
        # The class of a sample counts: the gradient is that of the answer that the label says.
        value, label = make(question, example[0]), question.label
        if label is None:
            label = predict((value, _like(example[1], 0, "label")))
        if label is None:
            raise BadQuestionError("samples of this job have a label that is no class: give label")
        pair: Any = type(example)
        return pair((value, _like(example[1], label, "label")))

    def _check_tokens(self, sample: Any) -> None:
        """Refuse token ids that there are none of: on a GPU they would end the process's work."""
        if self.tokenizer is None or not isinstance(sample, Mapping) or "input_ids" not in sample:
            return
        ids = np.asarray(sample["input_ids"])
        if ids.size and (ids.min() < 0 or ids.max() >= len(self.tokenizer)):
            raise BadQuestionError(
                f"token ids must be from 0 to {len(self.tokenizer) - 1}, got {ids.min()} to {ids.max()}"
            )

    def _text(self, question: Question, example: Any) -> Any:
        text = str(question.text)
        if isinstance(example, str):
            return text
        if isinstance(example, Mapping) and "input_ids" in example and self.tokenizer is not None:
            return self._tokens(text, example)
        if isinstance(example, Mapping) and isinstance(example.get("text"), str):
            return {**example, "text": text}
        raise BadQuestionError(
            f"samples of this job are not made of texts: serve it with {_PREPARE}"
        )

    def _tokens(self, text: str, example: Mapping[str, Any]) -> dict[str, Any]:
        made = dict(self.tokenizer(text))
        ids = list(made["input_ids"])
        most = getattr(self.tokenizer, "model_max_length", None)
        if not ids or (most and len(ids) > most):
            raise BadQuestionError(
                f"the text has {len(ids)} tokens; 1 to {most or 'any'} are needed"
            )
        # All of the text is what the model would be asked to say.
        values = {**made, "labels": ids}
        sample = {}
        for name, like in example.items():
            if name in values:
                sample[name] = _typed(like, values[name])
        return sample

    def _image(self, question: Question, example: Any) -> Any:
        if not _is_image(example):
            raise BadQuestionError(
                f"samples of this job are not made of images: serve it with {_PREPARE}"
            )
        shape = tuple(int(one) for one in example.shape)
        first = len(shape) == 3 and shape[0] in (1, 3)
        height, width = shape[1:] if first else shape[:2]
        channels = 1 if len(shape) == 2 else shape[0] if first else shape[2]
        if channels not in (1, 3):
            raise BadQuestionError(
                f"samples of this job have {channels} channels: serve it with {_PREPARE}"
            )
        image = opened_image(question.image).convert("L" if channels == 1 else "RGB")
        if image.size != (width, height):
            image = image.resize((width, height))
        values = np.asarray(image, dtype=np.float32).reshape(height, width, channels)
        values = np.moveaxis(values, -1, 0) if first else values
        return _typed(example, (values / self._unit(example)).reshape(shape))

    def _unit(self, example: Any) -> float:
        """Return what 255 is divided by: samples have bytes, or numbers from 0 to 1."""
        if "uint8" in str(example.dtype):
            return 1.0
        some = [self.dataset[at] for at in range(min(_SEEN, len(self.dataset)))]
        arrays = [np.asarray(one[0] if isinstance(one, tuple | list) else one) for one in some]
        low, high = min(a.min() for a in arrays), max(a.max() for a in arrays)
        if low < 0 or high > 1:
            raise BadQuestionError(
                f"images of this job have values from {low:.3g} to {high:.3g}, and how they were made "
                f"is not known: serve it with {_PREPARE}"
            )
        return 255.0


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


def opened_image(image: Any) -> Any:
    """Open an image; one of more than 16 million pixels is refused before it is decoded."""
    from PIL import Image

    if not isinstance(image, bytes):
        return image if hasattr(image, "getbands") else Image.fromarray(np.asarray(image))
    try:
        # Only the head is read here. Formats that run programs, as EPS does, are none of these.
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            opened = Image.open(BytesIO(image), formats=("PNG", "JPEG", "GIF", "BMP", "WEBP"))
        if opened.width * opened.height > MOST_PIXELS:
            raise BadQuestionError(
                f"the image has {opened.width} x {opened.height} pixels, {MOST_PIXELS:,} is the most"
            )
        opened.load()
    except BadQuestionError:
        raise
    except Exception as error:  # decoders raise what they like on what is no image
        raise BadQuestionError(
            "the image cannot be read: give a PNG, JPEG, GIF, BMP or WebP"
        ) from error
    return opened


def _like(example: Any, given: Any, where: str) -> Any:
    """Make values of JSON what the example is: the same tree, dtypes and dimensions."""
    if isinstance(example, Mapping):
        if not isinstance(given, Mapping):
            raise BadQuestionError(f"{where} must be an object with {', '.join(map(str, example))}")
        missing = [str(name) for name in example if name not in given]
        if missing:
            raise BadQuestionError(f"{where} lacks {', '.join(missing)}")
        return {name: _like(one, given[name], f"{where}.{name}") for name, one in example.items()}
    if isinstance(example, list) and example and all(type(one) in (int, float) for one in example):
        # A row of a table, such as token ids.
        row: list[Any] = _array(np.asarray(example), given, where).tolist()
        return row
    if isinstance(example, tuple | list) and not hasattr(example, "_fields"):
        if not isinstance(given, list | tuple) or len(given) != len(example):
            raise BadQuestionError(f"{where} must be a list of {len(example)}")
        pairs = enumerate(zip(example, given, strict=True))
        return type(example)(_like(one, value, f"{where}[{at}]") for at, (one, value) in pairs)
    if hasattr(example, "dtype"):
        return _array(example, given, where)
    if isinstance(example, bool | int | float | str):
        return _plain(example, given, where)
    raise BadQuestionError(
        f"{where} is a {type(example).__name__} in this job: serve it with {_PREPARE}"
    )


def _plain(example: bool | int | float | str, given: Any, where: str) -> Any:
    wanted = type(example)
    if hasattr(given, "item"):
        given = given.item()
    fits = isinstance(given, wanted) and isinstance(given, bool) == (wanted is bool)
    if not fits and not (
        wanted is float and isinstance(given, int) and not isinstance(given, bool)
    ):
        raise BadQuestionError(f"{where} must be a {wanted.__name__}")
    return wanted(given)


def _array(example: Any, given: Any, where: str) -> Any:
    shape = tuple(int(one) for one in example.shape)
    if hasattr(given, "detach"):
        given = given.detach().cpu()
    try:
        values = np.asarray(given)
    except (ValueError, TypeError, RuntimeError) as error:
        raise BadQuestionError(f"{where} must be numbers of shape {shape}") from error
    integers = not any(kind in str(example.dtype) for kind in ("float", "complex"))
    kinds = "biu" if integers else "biuf"
    # Rows of numbers, such as tokens, are of any length.
    same = values.shape == shape or (len(shape) == 1 and values.ndim == 1 and integers)
    if values.dtype.kind not in kinds or not same or not values.size:
        what = "integers" if integers else "numbers"
        raise BadQuestionError(f"{where} must be {what} of shape {shape}, got shape {values.shape}")
    return _typed(example, values)


def _typed(example: Any, values: Any) -> Any:
    """Make numbers of the example's kind and dtype: a tensor, an array or a list."""
    if hasattr(example, "detach"):
        import torch

        return torch.as_tensor(np.array(values), dtype=example.dtype)
    if hasattr(example, "dtype"):
        return np.asarray(values, dtype=example.dtype)
    return list(values)

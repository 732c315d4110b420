"""Bodies of requests: anybody's JSON, checked and turned into a question."""

from __future__ import annotations

import base64
import binascii
import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from trakstore.serve.limits import Limits
from trakstore.serve.question import KINDS, BadQuestionError, Question

_NAME_LETTERS, _MOST_EPOCHS, _FEW_SCORED = 1000, 1000, 3
_FIELDS = (*KINDS, "split", "label", "k", "epochs", "method", "samples", "stream", "tokens")


class BadRequestError(Exception):
    """A request that is refused with a status and a message for whoever sent it."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


def read_json(body: bytes) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    BadRequestError
        400: it is no JSON object, has numbers that JSON lacks, is nested too deep, or repeats a field.
    """
    try:
        text = body.decode("utf-8")
        document = json.loads(text, parse_constant=_no_number, object_pairs_hook=_named_once)
        # Half of a surrogate pair is no text, and could not be written again.
        json.dumps(document, ensure_ascii=False).encode("utf-8")
    except UnicodeError:
        raise BadRequestError(400, "the body is not UTF-8 text") from None
    except (ValueError, RecursionError):
        raise BadRequestError(400, "the body is not valid JSON") from None
    if not isinstance(document, dict):
        raise BadRequestError(400, 'the body must be a JSON object, such as {"target": 17}')
    return document


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # A proxy that reads the same body may take the first value of a name, and Python takes the last.
    document = dict(pairs)
    if len(document) < len(pairs):
        ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise BadRequestError(400, f"{name[:80]!r} is there twice in one object")
    return document


def _no_number(name: str) -> NoReturn:
    raise ValueError(name)


def question_of(document: Mapping[str, Any], limits: Limits) -> Question:
    """Turn a document into a question.

    Raises
    ------
    BadRequestError
        400: a field is unknown, or has a wrong type.
    BadQuestionError
        When not exactly one of the fields names the sample.
    """
    unknown = [name for name in document if name not in _FIELDS]
    if unknown:
        raise BadRequestError(
            400, f"no field {unknown[0][:80]!r}: there are {', '.join(sorted(_FIELDS))}"
        )
    given = {name: value for name, value in document.items() if value is not None}
    for name, value in given.items():
        if name in _CHECKS and not _CHECKS[name](value):
            raise BadRequestError(400, f"{name} must be {_WANTED[name]}")
    if len(str(given.get("text", ""))) > limits.letters:
        raise BadRequestError(413, f"the text has more than {limits.letters:,} characters")
    epochs = given.get("epochs")
    return Question(
        target=given.get("target"),
        split=given.get("split"),
        text=given.get("text"),
        image=_image(given["image"]) if "image" in given else None,
        sample=given.get("sample"),
        label=given.get("label"),
        k=given.get("k"),
        epochs=None if epochs is None else tuple(epochs if isinstance(epochs, list) else [epochs]),
        method=given.get("method"),
        # True stands for a few entries: each token is a pass over its sample, and somebody is waiting.
        tokens=_FEW_SCORED if given.get("tokens") is True else int(given.get("tokens", 0)),
        show=given.get("samples", True),
    )


def _image(text: str) -> bytes:
    """Decode an image in base64, with or without the head of a ``data:`` URL."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BadQuestionError("image must be base64") from None


def _is_name(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, int) or (isinstance(value, str) and len(value) <= _NAME_LETTERS)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _are_epochs(value: Any) -> bool:
    several = value if isinstance(value, list) else [value]
    return len(several) <= _MOST_EPOCHS and all(map(_is_name, several))


def _is_short(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _NAME_LETTERS


def _is_switch(value: Any) -> bool:
    return isinstance(value, bool)


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "target": _is_name,
    "split": _is_short,
    "text": _is_text,
    "image": _is_text,
    "k": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "epochs": _are_epochs,
    "method": _is_short,
    "samples": _is_switch,
    "stream": _is_switch,
    "tokens": lambda value: isinstance(value, int) and value >= 0,
}
_WANTED = {
    "target": "an id: an integer or a text of at most 1,000 characters",
    "split": "a name",
    "text": "a text that is not empty",
    "image": "base64 of an image",
    "k": "an integer",
    "epochs": "a list of epochs",
    "method": "a name",
    "samples": "true or false",
    "stream": "true or false",
    "tokens": "true or false, or a number of entries",
}

"""A question: about which sample, at which epochs, by which method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trakstore.errors import TrakStoreError
from trakstore.storage.layout import Epoch

# Ways to name the sample; exactly one of them is given.
KINDS = ("target", "text", "image", "sample")


class BadQuestionError(TrakStoreError):
    """A question that has no answer; the message can be shown to anybody."""


class UnknownSampleError(BadQuestionError):
    """A sample, epoch or method that does not exist."""


@dataclass(frozen=True)
class Question:
    """A question about one sample, given as one of ``target, text, image, sample``.

    Attributes
    ----------
    target : int or str, optional
        Id of a sample of ``split``, or ``"@N"`` for its row N.
    split : str, optional
        The targets' split (the default), or the train split.
    text : str, optional
    image : bytes or PIL image, optional
        Bytes of a PNG, JPEG or the like.
    sample : object, optional
        Values in the form of the job's data sets.
    label : object, optional
        Class or value of a text or image; the model's own prediction by default.
    k : int, optional
        Entries of each list; 20 by default, or all where there are fewer train rows.
    epochs : tuple of epochs, optional
        Epochs to combine; all that are served by default.
    method : str, optional
        A method by its name; that of the :class:`~trakstore.serve.Query` by default.
    tokens : int
        Number of entries of each list, from the first, whose tokens get scores of their own.
    show : bool
        Whether entries come with their texts and images.
    """

    target: int | str | None = None
    split: str | None = None
    text: str | None = None
    image: Any = None
    sample: Any = None
    label: Any = None
    k: int | None = None
    epochs: tuple[Epoch, ...] | None = None
    method: str | None = None
    tokens: int = 0
    show: bool = True

    def __post_init__(self) -> None:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            got = " and ".join(given) or "none of them"
            raise BadQuestionError(f"give one of {', '.join(KINDS)}: got {got}")
        if self.split is not None and self.target is None:
            raise BadQuestionError("split= says where a target is: give target= with it")
        if self.label is not None and self.target is not None:
            raise BadQuestionError("label= is the class of a text or image: a target has its own")

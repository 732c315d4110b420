"""Data of an answer: the samples that helped and harmed, and the origin of their scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trakstore.report.sample import Shown
from trakstore.report.scored_tokens import ScoredTokens
from trakstore.storage.layout import Epoch


@dataclass(frozen=True)
class Entry:
    """A train sample in a list.

    Attributes
    ----------
    id : int or str
        Sample id.
    score : float
        Score of the sample in question with this one.
    position : int
        Row of the stored train split.
    label : int or None
        Class, if it is stored.
    by_epoch : tuple of float
        Score of each epoch alone; empty if there is only one epoch.
    low, high : float or None
        95% bootstrap interval of the mean over epochs, from three on. It treats epochs as models that
        were trained separately, which those of one training are not.
    shown : Shown or None
        Text, image or cells, if the data set is available.
    tokens : ScoredTokens or None
        Tokens with their parts of the score, if they were asked for.

    Examples
    --------
    >>> first = ts.Query(store).ask(target="test-0", k=2).proponents[0]
    >>> first.id, first.position, first.label, len(first.by_epoch)
    ('train-9', 9, 0, 3)
    """

    id: int | str
    score: float
    position: int
    label: int | None = None
    by_epoch: tuple[float, ...] = ()
    low: float | None = None
    high: float | None = None
    shown: Shown | None = None
    tokens: ScoredTokens | None = None

    def __repr__(self) -> str:
        words = self.shown.brief if self.shown else ""
        text = f", {words!r}" if words else ""
        tokens = f", {len(self.tokens.scored)} tokens" if self.tokens else ""
        return f"Entry({self.id!r} {self.score:+.3g}{text}{tokens})"

    def to_dict(self) -> dict[str, Any]:
        """Return a dict for JSON."""
        own: dict[str, Any] = {"id": self.id, "score": self.score, "position": self.position}
        if self.label is not None:
            own["label"] = self.label
        if self.by_epoch:
            own["by_epoch"] = list(self.by_epoch)
        if self.low is not None:
            own |= {"low": self.low, "high": self.high}
        if self.tokens is not None:
            own["tokens"] = self.tokens.to_list()
        return own | shown_document(self.shown)


@dataclass(frozen=True)
class AnswerData:
    """First proponents and opponents of one sample.

    Attributes
    ----------
    target : int, str or None
        Id of the sample; None if it is in no split.
    split : str or None
        Split of the sample.
    label, predicted : int or None
        Its class, and the class predicted by the model of the last epoch; None if unknown.
    shown : Shown or None
        The sample itself.
    proponents, opponents : tuple of Entry
        Entries with the largest scores, and with the smallest, the most extreme first.
    method : str
        Name of the method.
    epochs : tuple of epochs
        Epochs whose scores are combined.
    share : float
        Share of the train rows that were scored: 1 for the final answer.
    provenance : mapping of str to str, number or mapping
        Origin of the scores.
    """

    target: int | str | None
    split: str | None
    label: int | None
    predicted: int | None
    shown: Shown | None
    proponents: tuple[Entry, ...]
    opponents: tuple[Entry, ...]
    method: str
    epochs: tuple[Epoch, ...]
    share: float
    provenance: Mapping[str, Any]

    @property
    def has_tokens(self) -> bool:
        """True when tokens of some entries have scores."""
        return any(one.tokens for one in (*self.proponents, *self.opponents))

    def to_dict(self) -> dict[str, Any]:
        """Return a dict for JSON, in the form of the service's answers."""
        asked = {"label": self.label, "predicted": self.predicted, **shown_document(self.shown)}
        return {
            "target": self.target,
            "split": self.split,
            "asked": {name: value for name, value in asked.items() if value is not None},
            "proponents": [one.to_dict() for one in self.proponents],
            "opponents": [one.to_dict() for one in self.opponents],
            "method": self.method,
            "epochs": list(self.epochs),
            "share": self.share,
            "provenance": dict(self.provenance),
        }

    def __repr__(self) -> str:
        of = "a new sample" if self.target is None else f"{self.target!r} of {self.split}"
        first = ", ".join(f"{one.id!r} {one.score:+.3g}" for one in self.proponents[:3])
        return f"Answer({self.method} of {of}: {first}, ...)"


def shown_document(shown: Shown | None) -> dict[str, Any]:
    """Write a sample for JSON: its image as a ``data:`` URL, its text, or its cells."""
    if shown is None:
        return {}
    if shown.image:
        return {"image": shown.image} | ({"text": shown.text} if shown.parts else {})
    if shown.cells:
        return {"cells": dict(shown.cells)}
    return {"text": shown.text}

"""Cards of train samples: entries of every list on the page."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from trakstore.report.sample import Shown
from trakstore.report.sections import Findings
from trakstore.report.units import from_to, number_form, written


@dataclass(frozen=True)
class Card:
    """Train sample in a list.

    Attributes
    ----------
    name : str
        Sample id.
    shown : Shown or None
        Picture, text or cells; None for its id alone.
    value, share : float
        Score or change, and its share, 0 to 1, of the largest magnitude of the list.
    number : str
        The value as written, in the common format of its list.
    label : str or None
        Class, if it is stored.
    same : bool or None
        True if it has the target's class; None if that is unknown.
    note : str
        Note below the value.
    predicted : str or None
        Class predicted by the model, if it was asked.
    """

    name: str
    shown: Shown | None
    value: float
    share: float
    number: str
    label: str | None = None
    same: bool | None = None
    note: str = ""
    predicted: str | None = None

    @property
    def wrong(self) -> bool:
        """True where another class was predicted."""
        return None not in (self.label, self.predicted) and self.label != self.predicted


def suspect_cards(findings: Findings) -> list[Card]:
    """Make cards of train samples with their scores on themselves."""
    if findings.suspects is None:
        return []
    form = number_form(findings.suspects["score"].values)
    return listed_cards(findings, findings.suspects, "score", form)


def change_cards(findings: Findings, listed: xr.Dataset) -> list[Card]:
    """Make cards of gained or lost samples, with their intervals and false discovery rates."""
    low, high, rate = (listed[name].values.tolist() for name in ("low", "high", "q"))
    form = number_form(np.concatenate([listed["change"].values, low, high]))
    notes = [
        from_to(a, b, form) + ("" if math.isnan(q) else f", FDR {q:.2g}")
        for a, b, q in zip(low, high, rate, strict=True)
    ]
    return listed_cards(findings, listed, "change", form, notes=notes)


def listed_cards(
    findings: Findings,
    listed: xr.Dataset,
    value: str,
    form: str,
    own: Any = None,
    notes: list[str] | None = None,
) -> list[Card]:
    """Make the cards of a list, whose numbers are the column ``value`` in the format ``form``."""
    names, places = listed["train"].values.tolist(), listed["position"].values.tolist()
    values = listed[value].values.astype(float)
    labels = listed["label"].values.tolist() if "label" in listed else [None] * len(names)
    predicted = (
        listed["predicted"].values.tolist() if "predicted" in listed else [None] * len(names)
    )
    # Bars are relative to the largest value of their own list, which may be 0.
    most = float(np.abs(values).max(initial=0)) or 1.0
    return [
        Card(
            name=str(name),
            shown=findings.show(findings.train, int(place), name),
            value=float(one),
            share=abs(float(one)) / most,
            number=written(form, float(one)),
            label=None if label is None else str(label),
            same=None if own is None or label is None else bool(label == own),
            note=note,
            predicted=None if said is None else str(said),
        )
        for name, place, one, label, said, note in zip(
            names, places, values, labels, predicted, notes or [""] * len(names), strict=True
        )
    ]

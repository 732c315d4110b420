"""Answers as HTML: for a part of the live page, or as a page for a notebook."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from trakstore.report.cards import Card
from trakstore.report.template import (
    content_policy,
    packaged_text,
    page_style,
    template_environment,
)
from trakstore.report.units import colour_level, from_to, in_powers_of_ten, number_form, written
from trakstore.serve.answer_data import AnswerData, Entry

PACKAGE = "trakstore.serve"
_MOST_EPOCHS = 12
_OWN_STYLE = "html { scroll-padding: 0; } body { padding: 0.8rem; background: var(--sheet); }\n"


def answer_part(answer: AnswerData, *, asking: bool = False) -> str:
    """Render an answer as a part of a page; all text is escaped.

    Parameters
    ----------
    answer : AnswerData
    asking : bool
        Whether the names of samples are buttons, for the page's script.
    """
    rows, unit = _by_epoch(answer)
    name = "typed or dropped here" if answer.target is None else str(answer.target)
    ends = (("Proponents", "helpful"), ("Opponents", "harmful"))
    form = number_form(np.array([one.score for one in (*answer.proponents, *answer.opponents)]))
    part: str = _template().render(
        answer=answer,
        name=name,
        facts=_facts(answer),
        lists=[
            (title, kind, _cards(listed, answer.label, form))
            for (title, kind), listed in zip(
                ends, (answer.proponents, answer.opponents), strict=True
            )
        ],
        epochs=[str(one) for one in answer.epochs[-_MOST_EPOCHS:]],
        rows=rows,
        unit=unit,
        asking=asking,
    )
    return part


def answer_page(answer: AnswerData) -> str:
    """Render an answer as a page that runs no script and loads nothing."""
    style = page_style() + _OWN_STYLE
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{content_policy(style, "")}">'
        '<meta name="color-scheme" content="light dark"><title>trakstore</title>'
        f"<style>{style}</style></head><body>{answer_part(answer)}</body></html>"
    )


@cache
def _template() -> Any:
    return template_environment().from_string(packaged_text("answer.html", PACKAGE))


def _facts(answer: AnswerData) -> dict[str, str]:
    """Write facts about the sample and its scores, for people."""
    facts = {"class": answer.label, "predicted": answer.predicted, "method": answer.method}
    said = {name: str(value) for name, value in facts.items() if value is not None}
    epochs = answer.epochs
    most = f"{len(epochs)}, {epochs[0]} to {epochs[-1]}" if len(epochs) > 6 else ""
    said["epochs"] = most or ", ".join(map(str, epochs))
    said["train"] = f"{answer.provenance['train_rows']:,} samples of {answer.provenance['train']}"
    return said


def _cards(listed: tuple[Entry, ...], label: int | None, form: str) -> list[Card]:
    most = max((abs(one.score) for one in listed), default=0.0) or 1.0
    return [
        Card(
            name=str(one.id),
            shown=one.shown,
            value=one.score,
            share=abs(one.score) / most,
            number=written(form, one.score),
            label=None if one.label is None else str(one.label),
            same=None if label is None or one.label is None else one.label == label,
            note="" if one.low is None or one.high is None else from_to(one.low, one.high, form),
        )
        for one in listed
    ]


def _by_epoch(answer: AnswerData) -> tuple[list[tuple[str, list[tuple[float, int]]]], str]:
    """Return each entry's scores of the last epochs, with their levels of colour, and their unit."""
    entries = [one for one in (*answer.proponents, *answer.opponents) if one.by_epoch]
    if not entries:
        return [], ""
    scaled, unit = in_powers_of_ten(np.array([one.by_epoch[-_MOST_EPOCHS:] for one in entries]))
    most = float(np.abs(scaled).max())
    return [
        (str(one.id), [(value, colour_level(value, most)) for value in row])
        for one, row in zip(entries, scaled.tolist(), strict=True)
    ], unit

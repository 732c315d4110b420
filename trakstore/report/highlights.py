"""Highlights: a few sentences on the page's content, for its first screen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from trakstore.planning import counted
from trakstore.report.sections import Findings
from trakstore.report.target_panels import Panel

_NAMED = 4  # most targets that a sentence names


@dataclass(frozen=True)
class Highlight:
    """Sentence about a finding.

    Attributes
    ----------
    about : str
        Subject, in a word or two.
    text : str
        The sentence.
    section : str
        Section of the page that has the details, by its id.
    panels : sequence of Panel
        Targets that the sentence names.
    """

    about: str
    text: str
    section: str
    panels: Sequence[Panel] = ()


def highlights(findings: Findings, panels: Sequence[Panel]) -> list[Highlight]:
    """Choose findings worth a sentence; numbers are about the shown targets, if not said otherwise."""
    return [
        *_wrong(panels),
        *_own_class(findings),
        *_dominated(findings, panels),
        *_stability(findings),
        *_suspects(findings),
    ]


def _wrong(panels: Sequence[Panel]) -> Iterator[Highlight]:
    known = [one for one in panels if None not in (one.label, one.predicted)]
    if known:
        wrong = sum(one.wrong for one in known)
        text = (
            f"{wrong} of the {len(known)} targets shown are predicted as another class than theirs."
        )
        yield Highlight("Wrong", text, "targets")


def _own_class(findings: Findings) -> Iterator[Highlight]:
    classes = findings.classes
    if classes is not None:
        text = (
            f"{classes.share:.0%} of all positive score is from the target's own class, which has "
            f"{classes.base:.0%} of the train samples."
        )
        yield Highlight("Own class", text, "classes")


def _dominated(findings: Findings, panels: Sequence[Panel]) -> Iterator[Highlight]:
    if findings.proponents.sizes["rank"] < 2:
        return  # lists of one entry have no second one
    some = [one for one in panels if one.dominant is not None]
    if not some:
        text = "No target has a train sample with three times the score of the next."
        yield Highlight("One sample", text, "targets")
        return
    text = (
        f"{len(some)} of {counted(len(panels), 'target')} "
        f"{'has' if len(some) == 1 else 'have'} one train sample with three times the score of the "
        f"next, or more (a near copy?):"
    )
    yield Highlight("One sample", text, "targets", some[:_NAMED])


def _stability(findings: Findings) -> Iterator[Highlight]:
    ranks = findings.ranks
    if ranks is None:
        return
    before, after = ranks["epoch"].values[-2:]
    last = ranks.isel(epoch=-1)
    kept, correlation = (float(np.median(last[name])) for name in ("kept", "spearman"))
    text = (
        f"From epoch {before} to {after} a target keeps {kept * findings.k:.3g} of its first "
        f"{findings.k} proponents; its scores' rank correlation is {correlation:.2f} (medians)."
    )
    yield Highlight("Over epochs", text, "targets")


def _suspects(findings: Findings) -> Iterator[Highlight]:
    suspects = findings.suspects
    if suspects is None or "predicted" not in suspects or "label" not in suspects:
        return
    other = int((suspects["predicted"].values != suspects["label"].values).sum())
    text = (
        f"{other} of the {suspects.sizes['rank']} train samples that score highest on themselves are "
        f"predicted as another class than their label."
    )
    yield Highlight("Suspects", text, "suspects")

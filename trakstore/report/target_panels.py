"""Panels of the page, one for each target, as the template uses them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr

from trakstore.report.cards import Card, listed_cards
from trakstore.report.charts import plot_distribution, plot_evolution
from trakstore.report.inline_svg import inline_svg, untitled
from trakstore.report.sections import PATHS, Findings
from trakstore.report.units import colour_level, evenly_spaced, number_form, written

MOST_EPOCHS = 12


@dataclass(frozen=True)
class EpochRow:
    """Sample over epochs: standard deviations, and colour levels from -4 to 4."""

    name: str
    helpful: bool
    cells: tuple[tuple[float, int], ...]


@dataclass
class Panel:
    """Content about one target, ``findings.rows[at]``.

    Attributes
    ----------
    key, name : str
        Prefix of the ids of its elements on the page, and sample id.
    shown : Shown or None
        Picture, text or cells.
    label, predicted : str or None
        Its class, and the class predicted by the model.
    measured : dict of str to float
        Stored columns, such as its loss.
    proponents, opponents : list of Card
        Train samples that helped and harmed most.
    histogram, lines : str
        Charts as SVG; no lines if there is only one epoch.
    epoch_names, epoch_rows : list
        Head and rows of the table with the numbers of the lines.
    own, stability : list of (name, cells)
        Rows below it: the target's own output and loss, if stored, and the agreement of each epoch's
        ranks with those of the epoch before.
    dominant, dominant_opponent : Dominant or None
        First entry of a list, if it dominates that.
    """

    findings: Findings
    at: int

    def __post_init__(self) -> None:
        findings, at = self.findings, self.at
        ups, downs = (one.isel(target=at) for one in (findings.proponents, findings.opponents))
        sample_id = ups["target_id"].item()
        own = ups["target_label"].item() if "target_label" in ups else None
        self.key, self.name = f"t{at}", str(sample_id)
        self.shown = findings.show(findings.targets, int(findings.stored_rows[at]), sample_id)
        self.label = None if own is None else str(own)
        self.predicted = None if findings.predicted is None else str(findings.predicted[at])
        self.measured = {name: float(values[at]) for name, values in findings.measured.items()}
        form = number_form(np.concatenate([ups["score"].values, downs["score"].values]))
        self.proponents = self._shaded(listed_cards(findings, ups, "score", form, own=own), ups)
        self.opponents = self._shaded(listed_cards(findings, downs, "score", form, own=own), downs)
        self.histogram = _histogram(findings.spread, at, self.key)
        paths = findings.paths
        self.lines = "" if paths is None else _lines(paths, at, self.key)
        self.epoch_names: list[str] = []
        self.epoch_rows: list[EpochRow] = []
        if paths is not None:
            one, length = paths.isel(target=at), min(PATHS, findings.k)
            self.epoch_names, self.epoch_rows = _by_epoch(one, length)
        self.own: list[tuple[str, list[str]]] = []
        self.stability: list[tuple[str, list[str]]] = []
        if findings.ranks is not None:
            self.own, self.stability = _below(findings, findings.ranks, at)
        self.dominant = findings.dominant[at]
        self.dominant_opponent = findings.dominant_opponent[at]

    def _shaded(self, cards: list[Card], listed: xr.Dataset) -> list[Card]:
        """Return a list whose first texts are shaded, if that was asked for."""
        tokens = self.findings.tokens
        if tokens is None:
            return cards
        scores = self.findings.scores.isel(target=int(self.findings.rows[self.at]))
        places = listed["position"].values.tolist()[: tokens.count]
        first = [
            replace(card, shown=tokens.shown(place, scores, card.shown))
            for card, place in zip(cards, places, strict=False)
        ]
        return [*first, *cards[len(first) :]]

    @property
    def words(self) -> str:
        """Text that the page's filter searches."""
        brief = self.shown.brief if self.shown else ""
        return f"{self.name} {brief} {'wrong' if self.wrong else ''}".lower()

    @property
    def brief(self) -> str:
        """First words of the sample; empty if its id is the same text."""
        brief = self.shown.brief if self.shown else ""
        return "" if brief.rstrip("…").strip() in " ".join(self.name.split()) else brief

    @property
    def wrong(self) -> bool:
        """True where another class was predicted."""
        return None not in (self.label, self.predicted) and self.label != self.predicted


def panels(findings: Findings) -> list[Panel]:
    """Make a panel for each target, in their order."""
    return [Panel(findings, at) for at in range(len(findings.rows))]


def _histogram(spread: xr.Dataset, at: int, key: str) -> str:
    one = spread.isel(target=at)
    label = (
        f"Histogram of the scores: mean {float(one['mean']):.3g}, standard deviation "
        f"{float(one['std']):.3g}, from {float(one['edge'][0]):.3g} to {float(one['edge'][-1]):.3g}"
    )
    return inline_svg(lambda axes: untitled(plot_distribution(spread, at, axes)), label, f"{key}h")


def _lines(paths: xr.Dataset, at: int, key: str) -> str:
    label = "Lines of each sample's score over epochs; the table beside it has the numbers"
    return inline_svg(lambda axes: untitled(plot_evolution(paths, at, axes)), label, f"{key}l")


def _by_epoch(paths: xr.Dataset, length: int) -> tuple[list[str], list[EpochRow]]:
    """Return rows of samples with evenly spaced epochs as columns, and the names of these epochs."""
    columns = evenly_spaced(paths.sizes["epoch"], MOST_EPOCHS)
    values = paths["standard"].values[columns]  # (epoch, rank)
    most = float(np.abs(values).max())
    rows = [
        EpochRow(str(name), rank < length, tuple((v, colour_level(v, most)) for v in line))
        for rank, (name, line) in enumerate(
            zip(paths["train"].values.tolist(), values.T.tolist(), strict=True)
        )
    ]
    return [str(epoch) for epoch in paths["epoch"].values[columns]], rows


def _below(findings: Findings, ranks: xr.Dataset, at: int) -> list[list[tuple[str, list[str]]]]:
    """Return rows with the same columns; the first epoch has no ranks before it."""
    one = ranks.isel(target=at, epoch=evenly_spaced(ranks.sizes["epoch"], MOST_EPOCHS))
    names = {f"target_{column}": name for column, name in findings.column_names.items()}
    own = [(name, _cells(one[column], ".3g")) for column, name in names.items() if column in one]
    kept = _cells(one["kept"] * findings.k, ".0f")
    alike = _cells(one["spearman"], ".2f")
    return [own, [(f"kept of the first {findings.k}", kept), ("rank correlation", alike)]]


def _cells(values: xr.DataArray, form: str) -> list[str]:
    """Write a number for each epoch; an empty text if there is none."""
    return ["" if math.isnan(one) else written(form, one) for one in values.values.tolist()]

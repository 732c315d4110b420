"""Tables of an analysis: over epochs, between epochs, by groups, by samples."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr
from rich.table import Table

from trakstore.markup import one_line
from trakstore.report.terminal_tables import plain_table
from trakstore.report.units import from_to

_LISTED = 5  # samples that a line names


def evolution_table(found: xr.Dataset) -> Table:
    """Make a table with a line an epoch, for one target of :func:`trakstore.analysis.evolution`.

    With ``label`` (epoch, rank), labels stand in brackets; ``target_output`` and ``target_loss``
    (epoch,) have columns of their own. ``like before`` is Spearman's correlation with the scores of the
    epoch before, ``kept`` the share of the list that was in the list before.
    """
    own = [name for name in ("output", "loss") if f"target_{name}" in found]
    table = plain_table("epoch", *own, "mean", "std", "max", "like before", "kept")
    # Names without spaces are folded: otherwise the end of one wider than the column would be cut off.
    table.add_column(f"{_train(found)}, {found.attrs['order']} first", overflow="fold")
    for at, epoch in enumerate(found["epoch"].values.tolist()):
        one = found.isel(epoch=at)
        numbers = [_or_dash(float(one[f"target_{name}"]), ".3g") for name in own]
        numbers += [f"{float(one[name]):.3g}" for name in ("mean", "std", "max")]
        numbers += [_or_dash(float(one[name]), ".2f") for name in ("spearman", "kept")]
        names = _names(one)
        more = ", ..." if len(names) > _LISTED else ""
        table.add_row(str(epoch), *numbers, ", ".join(names[:_LISTED]) + more)
    return table


def change_table(found: xr.Dataset, title: str) -> Table:
    """Make a table of samples that :func:`trakstore.analysis.transition` lists.

    With ``label`` (rank,), labels stand in brackets.
    """
    head = f"{title}: {_train(found)}"
    table = plain_table(head, "change", "95% over targets", "p", "false discovery rate")
    for at, name in enumerate(_names(found)):
        one = found.isel(rank=at)
        chance = [_or_dash(float(one[name]), ".2g") for name in ("p", "q")]
        interval = from_to(float(one["low"]), float(one["high"]), "+.3g")
        table.add_row(name, f"{float(one['change']):+.3g}", interval, *chance)
    return table


def summary_facts(numbers: Mapping[str, float], rows: int) -> dict[str, str]:
    """Write the means of a summary of classes, each with its meaning."""
    meanings = {
        "same_class_share": "of positive score is from the target's class,",
        "same_class_base_rate": "of train samples are of it",
        "participation_ratio": f"samples share a score (1 has all, {rows:,} all alike)",
        "gini": "(0 even, 1 one sample has all)",
        "positive_mass_top_tenth": "of positive score is in a tenth of samples",
    }
    return {
        name.replace("_", " "): f"{value:.3g} {meanings[name]}" for name, value in numbers.items()
    }


def dynamics_table(found: xr.Dataset) -> Table:
    """Make a table with a line a sample of :func:`trakstore.analysis.training_dynamics`.

    Confidence, variability, correctness, area under the margin, EL2N, loss, forgetting events, and the
    first epoch at which it was predicted right.
    """
    numbers = ("confidence", "variability", "correctness", "aum", "el2n", "loss")
    counts = ("forgetting_events", "first_learned")
    short = ("conf.", "var.", "right", "aum", "el2n", "loss", "forgot", "since")
    table = plain_table("sample", *short)
    for at, name in enumerate(found["sample_id"].values.tolist()):
        one = found.isel(sample=at)
        cells = [f"{float(one[column]):.3g}" for column in numbers]
        table.add_row(one_line(name), *cells, *(str(int(one[column])) for column in counts))
    return table


def _train(found: xr.Dataset) -> str:
    return "train (label)" if "label" in found else "train ids"


def _names(found: xr.Dataset) -> list[str]:
    names = [one_line(name) for name in found["train"].values.tolist()]
    if "label" not in found:
        return names
    labels = found["label"].values.tolist()
    return [f"{name} ({label})" for name, label in zip(names, labels, strict=True)]


def _or_dash(value: float, form: str) -> str:
    return "-" if np.isnan(value) else f"{value:{form}}"

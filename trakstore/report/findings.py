"""Tables of what an analysis found: over epochs, between epochs, by groups, by samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from rich.table import Table

from trakstore.report.tables import plain_table
from trakstore.report.units import in_powers_of_ten

__all__ = ["change_table", "dynamics_table", "evolution_table", "group_table"]

_LISTED = 5  # samples of a line


def evolution_table(found: xr.Dataset) -> Table:
    """One line an epoch, for one target of :func:`trakstore.analysis.evolution.evolution`.

    ``like before`` is Spearman's correlation with the scores of the epoch before, ``kept`` the share of
    the list that was in the list before.
    """
    table = plain_table("epoch", "mean", "std", "max", "like before", "kept")
    table.add_column(f"train ids, {found.attrs['order']} first")
    for at, epoch in enumerate(found["epoch"].values.tolist()):
        one = found.isel(epoch=at)
        numbers = [f"{float(one[name]):.3g}" for name in ("mean", "std", "max")]
        numbers += [_or_dash(float(one[name]), ".2f") for name in ("spearman", "kept")]
        names = [str(name) for name in one["train"].values.tolist()]
        more = ", ..." if len(names) > _LISTED else ""
        table.add_row(str(epoch), *numbers, ", ".join(names[:_LISTED]) + more)
    return table


def change_table(found: xr.Dataset, title: str) -> Table:
    """Gained or lost samples of :func:`trakstore.analysis.transitions.transition`."""
    table = plain_table(title, "change", "95% over targets", "p", "false discovery rate")
    for at, name in enumerate(found["train"].values.tolist()):
        one = found.isel(rank=at)
        low, high = float(one["low"]), float(one["high"])
        chance = [_or_dash(float(one[name]), ".2g") for name in ("p", "q")]
        table.add_row(
            str(name), f"{float(one['change']):+.3g}", f"{low:+.3g} to {high:+.3g}", *chance
        )
    return table


def group_table(
    means: NDArray[np.float64], targets: Sequence[object], trains: Sequence[object]
) -> Table:
    """Mean scores of groups of targets (lines) with groups of train rows (columns), in one unit."""
    scaled, unit = in_powers_of_ten(means)
    table = plain_table("targets", *(str(one) for one in trains))
    table.title = f"mean scores, in {unit}"
    for name, row in zip(targets, scaled, strict=True):
        table.add_row(str(name), *(f"{value:+z.1f}" for value in row))
    return table


def dynamics_table(found: xr.Dataset) -> Table:
    """One line a sample of :func:`trakstore.analysis.dynamics.training_dynamics`.

    Confidence, variability, correctness, area under the margin, EL2N, loss, forgetting events, and the
    first epoch at which it was predicted right.
    """
    numbers = ("confidence", "variability", "correctness", "aum", "el2n", "loss")
    counts = ("forgetting_events", "first_learned")
    short = ("conf.", "var.", "right", "aum", "el2n", "loss", "forgot", "since")
    table = plain_table("sample", *short)
    for at, name in enumerate(found["sample_id"].values.tolist()):
        one = found.isel(sample=at)
        shown = [f"{float(one[column]):.3g}" for column in numbers]
        table.add_row(str(name), *shown, *(str(int(one[column])) for column in counts))
    return table


def _or_dash(value: float, form: str) -> str:
    return "-" if np.isnan(value) else f"{value:{form}}"

"""Pictures of what ``accuracy.py`` found."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

Lines = list[dict[str, Any]]
SHOWN = {"mlp": "MLP, n = 1,297", "few": "MLP, n = 400", "cnn": "CNN, n = 1,297"}


def draw(found: Lines, default: Mapping[str, float], path: Path) -> None:
    """LDS by dimension, models and damping; ``default`` is what each is elsewhere."""
    tables = {"dim": "dimension", "checkpoints": "models", "damping": "c of λ = c·tr(K)/n"}
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for axes, (table, label) in zip(panels, tables.items(), strict=True):
        for kind in dict.fromkeys(one["model"] for one in found):
            own = [one for one in found if one["model"] == kind]
            points = sorted(points_of(own, table, default))
            x, y, low, high = zip(*points, strict=True)
            spread = [np.subtract(y, low), np.subtract(high, y)]
            axes.errorbar(x, y, spread, marker="o", capsize=2, label=SHOWN[kind])
        axes.set(xscale="log", xlabel=label, ylabel="LDS" if table == "dim" else "")
        axes.set_xticks(x, [f"{one:g}" for one in x])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    panels[1].legend(loc="lower right")  # few points there
    figure.savefig(path)


def points_of(found: Lines, table: str, default: Mapping[str, float]) -> list[tuple[float, ...]]:
    """Setting, LDS and its interval, with the default among them."""
    points = []
    for one in found:
        other = "paper" in one["name"] or f"dim {default['dim']}," not in one["name"]
        if one["table"] == table and not (table == "damping" and other):
            number = one["name"].split(", ")[-1].split()[0]
            points.append((float(number), one["lds"], one["low"], one["high"]))
        elif one["table"] == "default" and table != "damping":
            points.append((default[table], one["lds"], one["low"], one["high"]))
    return points


# Lines of language models that the chart shows, by what they are called there.
SERIES = {
    "trak_scores, one projection": "gradients as they are, one projection",
    "trak_scores": "a projection for each epoch",
    "trak_scores, scale, 4 draws": "scaled, 4 draws of labels",
    "trak_scores, scale, 8 draws": "scaled, 8 draws",
    "trak_scores, scale, 8 draws, threshold": "scaled, 8 draws, soft threshold",
    "trak_scores, scale, 8 draws, 8 bits": "scaled, 8 draws, 8 bits a number",
    "traker": "traker",
    "dattri": "dattri, TRAK",
}
SIZES = {"small": "116,544 parameters", "large": "229,952 parameters"}
# Scores of whole gradients, as levels.
LEVELS = {
    "EK-FAC, damping 0.001": "EK-FAC",
    "EK-FAC, damping 0.001, threshold": "EK-FAC, soft threshold",
    "scaled, kernel, 4 draws, c = 0.01": "whole gradients, scaled, 4 draws",
}


def draw_language(found: Lines, path: Path) -> None:
    """LDS of all checkpoints by the stored bytes of a train row, and levels of what is not stored."""
    kinds = list(dict.fromkeys(one["model"] for one in found))
    figure = Figure(figsize=(5 * len(kinds) + 2.4, 3.6), layout="constrained")
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        own = [one for one in found if one["model"] == kind]
        stored = [one for one in own if "bytes" in one and one["checkpoints"] != 1]
        for number, name in enumerate(SERIES):
            curve(axes, [one for one in stored if one["name"] == name], number)
        for style, (name, label) in zip(("--", "-.", ":"), LEVELS.items(), strict=True):
            for one in own:
                if one["name"] == name and one["table"].startswith("dense x"):
                    axes.axhline(one["lds"], ls=style, color="0.3", label=f"{label}, not stored")
        ticks = sorted({one["bytes"] for one in stored})
        axes.set(title=SIZES.get(kind, kind), xscale="log", xlabel="stored bytes of a train row")
        axes.set_xticks(ticks, [f"{one / 1024:g} KiB" for one in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("LDS, all checkpoints")
    named = {label: line for axes in panels
             for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}  # fmt: skip
    figure.legend(named.values(), named.keys(), loc="outside right center", fontsize="small")
    figure.savefig(path)


def curve(axes: Any, lines: Lines, number: int) -> None:
    """Draw the lines of one name by their bytes, with intervals."""
    if not lines:
        return
    points = sorted((one["bytes"], one["lds"], one["low"], one["high"]) for one in lines)
    x, y, low, high = zip(*points, strict=True)
    spread = [np.subtract(y, low), np.subtract(high, y)]
    look = {"marker": "o", "capsize": 2, "color": f"C{number}", "label": SERIES[lines[0]["name"]]}
    # Points of one size would hide each other's intervals.
    axes.errorbar(np.multiply(x, 1 + 0.03 * number), y, spread, **look)

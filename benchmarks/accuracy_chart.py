"""The picture of what ``accuracy.py`` found."""

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

"""Picture of the tables of speed in this folder's README.

python benchmarks/speed_chart.py
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

README = Path(__file__).parent / "README.md"
PICTURE = README.parent.parent / ".github" / "speed.svg"
Table = dict[str, dict[str, float]]

# Columns that the chart shows, by how they begin, and their names there.
COSTS = {"`sjlt`": "sjlt", "`kronecker`": "kronecker", "`rademacher`": "dense signs"}
RATES = {
    "`sjlt`": "sjlt",
    "`kronecker`": "kronecker",
    "LogIX": "LogIX",
    "traker": "traker",
    "dattri": "dattri",
}
COLOURS = {
    name: f"C{at}" for at, name in enumerate({**dict.fromkeys(RATES.values()), "dense signs": 0})
}


def read_table(text: str, first: str, columns: dict[str, str]) -> Table:
    """Read the first number of some cells, by row and by column; ``first`` begins the head."""
    lines = text[text.index(f"\n{first}") + 1 :].split("\n\n")[0].splitlines()
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    places = {name: at for start, name in columns.items() for at, cell in enumerate(head)
              if cell.startswith(start)}  # fmt: skip
    table: Table = {}
    for row in rows:
        label = f"{row[0]}, dim {row[1]}" if head[1] == "dim" else row[0]
        numbers = {name: re.match(r"[\d,.]+", row[at]) for name, at in places.items()}
        table[label] = {name: float(n[0].replace(",", "")) for name, n in numbers.items() if n}
    return table


def points(axes: Any, table: Table, names: list[str], title: str, corner: str) -> None:
    """Draw a group of points for each row, on a logarithmic axis, with the numbers beside them."""
    for group, numbers in enumerate(table.values()):
        for place, name in enumerate(names):
            if name in numbers:
                y = group + 0.8 * (place + 0.5) / len(names) - 0.4
                label = name if group == 0 else None
                axes.plot(numbers[name], y, "o", color=COLOURS[name], ms=5, label=label)
                axes.text(numbers[name], y, f"  {numbers[name]:,g}", va="center", fontsize=7)
        axes.axhline(group + 0.5, color="0.85", lw=0.8)
    axes.set_yticks(range(len(table)), [label.replace(", ", ",\n", 1) for label in table])
    axes.tick_params(axis="y", labelsize=8)
    axes.invert_yaxis()
    axes.set(xscale="log", title=title)
    axes.margins(x=0.15)
    axes.legend(fontsize=7, loc=corner)


def draw(text: str, path: Path) -> tuple[Table, Table]:
    """Draw the costs of features, and samples per second beside other libraries."""
    costs = read_table(text, "| model, batch 32 | dim |", COSTS)
    rates = read_table(text, "| model | `sjlt`, batch 32", RATES)
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    points(
        left, costs, list(COSTS.values()), "time, of a plain pass (less is better)", "lower right"
    )
    left.axvline(1, color="0.3", lw=1)
    points(right, rates, list(RATES.values()), "samples per second (more is better)", "upper left")
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "speed"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    return costs, rates


if __name__ == "__main__":
    draw(README.read_text(), PICTURE)

"""The chart of speed shows the tables beside it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
import speed_chart

TEXT = """
| model, batch 32 | dim | `sjlt` | `kronecker`, side 16 / 32 | `rademacher` (dense) |
|---|---|---|---|---|
| MLP | 2,048 | 1.45 | 0.87 / 0.90 | 27 |

| model | `sjlt`, batch 32 / largest | traker's normal | dattri's normal | `kronecker` | LogIX |
|---|---|---|---|---|---|
| MLP | 14,492 / 80,493 (1,024) | 1,436 / 80 | 63 | 21,279 | |
"""


def test_first_numbers_of_cells_are_drawn(tmp_path: Path) -> None:
    costs, rates = speed_chart.draw(TEXT, tmp_path / "speed.svg")
    assert costs == {"MLP, dim 2,048": {"sjlt": 1.45, "kronecker": 0.87, "dense signs": 27.0}}
    assert rates == {"MLP": {"sjlt": 14492, "kronecker": 21279, "traker": 1436, "dattri": 63}}
    texts = re.findall(r">\s*([\d.,]+)</text>", (tmp_path / "speed.svg").read_text())
    assert {"1.45", "0.87", "27", "14,492", "21,279", "1,436", "63"} <= set(texts)


def test_the_picture_has_the_numbers_of_the_readme(tmp_path: Path) -> None:
    tables = speed_chart.draw(speed_chart.README.read_text(), tmp_path / "speed.svg")
    numbers = {f"{n:,g}" for table in tables for row in table.values() for n in row.values()}
    kept = set(re.findall(r">\s*([\d.,]+)</text>", speed_chart.PICTURE.read_text()))
    assert len(numbers) > 20
    assert numbers <= kept, "run: python benchmarks/speed_chart.py"

"""Tables and lines of evaluations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from trakstore.evaluation.intervals import mean_interval
from trakstore.evaluation.lds import LDS
from trakstore.evaluation.verdicts import Check
from trakstore.evaluation.wrong_labels import Detection
from trakstore.markup import one_line
from trakstore.report.terminal_tables import plain_table, span

if TYPE_CHECKING:  # it needs torch
    from trakstore.evaluation.efficiency import Cell

_STYLES = {"pass": "green", "warn": "yellow", "fail": "red"}


def lds_table(found: Mapping[str, LDS]) -> Table:
    """Make a table with a line for each matrix of scores."""
    table = plain_table("scores", "LDS", "95%", "subsets", "targets")
    for name, one in found.items():
        numbers = [f"{one.mean:.3f}", f"{one.low:.3f} to {one.high:.3f}"]
        table.add_row(name, *numbers, f"{one.subsets:,}", f"{len(one.per_target):,}")
    return table


def removal_table(found: xr.Dataset) -> Table:
    """Make a table with a line for each size and kind of removal, means over targets."""
    flips = "flips" in found
    table = plain_table("taken away", "output falls by", "95% over targets")
    if flips:
        table.add_column("class changes", justify="right")
        table.add_column("95%", justify="right")
        chance = f"{float(found['chance'].mean()):.0%}"
        table.add_row("nothing, another seed", "", "", chance, "")
    for size in found["size"].values.tolist():
        for kind in found["removal"].values.tolist():
            one = found.sel(size=size, removal=kind)
            mean, low, high = mean_interval(one["change"])
            row = [f"{mean:+.3g}", f"{low:+.3g} to {high:+.3g}"]
            if flips:
                mean, low, high = mean_interval(one["flips"])
                row += [f"{mean:.0%}", f"{low:.0%} to {high:.0%}"]
            table.add_row(f"{kind.replace('_', ' ')} {size}", *row)
    return table


def suspects_table(scores: xr.DataArray, known: NDArray[np.bool_] | None) -> Table:
    """Make a table of samples with their self-scores."""
    table = plain_table("train id", "self-score")
    if known is not None:
        table.add_column("known to be wrong")
    for at, (name, score) in enumerate(zip(scores["train_id"].values, scores.values, strict=True)):
        mark = [] if known is None else ["yes" if known[at] else ""]
        table.add_row(one_line(name), f"{score:.3g}", *mark)
    return table


def detection_lines(found: Detection) -> list[str]:
    """Write lines about how well known samples were found."""
    return [
        f"area under the ROC curve {found.auc:.3f} (95% {found.low:.3f} to {found.high:.3f}); "
        f"0.5 is chance",
        f"of the first {found.found}, {found.precision:.0%} are known to be wrong "
        f"({found.found / found.samples:.0%} of all {found.samples:,} are)",
    ]


def efficiency_table(cells: Sequence[Cell]) -> Table:
    """Make a table with a line a size; seconds are medians, with the least and the most."""
    table = plain_table(
        "rows, targets, dim", "compute s", "write s", "both s", "rows/s", "top 10 s"
    )
    table.add_column("peak MB", justify="right")
    for cell in cells:
        spreads = (cell.compute, cell.write, cell.featurize, cell.top)
        compute, write, both, top = (
            f"{one.median:.3g} ({one.least:.3g} to {one.most:.3g})" for one in spreads
        )
        memory = f"{cell.memory / 1e6:.0f}"
        if cell.device_memory:
            memory += f" + {cell.device_memory / 1e6:.0f} GPU"
        size = f"{cell.train:,}, {cell.targets:,}, {cell.dim:,}"
        table.add_row(size, compute, write, both, f"{cell.rows_per_second:,.0f}", top, memory)
    return table


def check_lines(check: Check) -> Iterator[Text]:
    """Yield the lines of a check: its message, and a remedy below it."""
    yield _check_line(check, check.where, _result(check))
    if check.remedy:
        yield Text(f"      {check.remedy}")


def passed_lines(checks: Iterable[Check]) -> Iterator[Text]:
    """Yield checks that passed; for a check with the same result at several epochs, one line.

    Numbers that differ are shown from the smallest to the largest.
    """
    # Results are the same if their words are, apart from the numbers among these.
    alike: dict[tuple[str, ...], list[Check]] = {}
    for check in checks:
        words = ["#" if _is_number(word) else word for word in _result(check).split()]
        alike.setdefault((check.name, check.of, *words), []).append(check)
    for some in alike.values():
        epochs = [check.epoch for check in some if check.epoch is not None]
        plural = "s" if len(epochs) > 1 else ""
        where = f"{some[0].of} at epoch{plural} {span(epochs)}" if epochs else some[0].of
        columns = zip(*(_result(check).split() for check in some), strict=True)
        yield _check_line(some[0], where, " ".join(_range(words) for words in columns))


def _check_line(check: Check, where: str, said: str) -> Text:
    line = Text(f"{check.verdict:4}", style=_STYLES[check.verdict])
    return line + Text(f"  {check.name} ({where}): {said}", style="")


def _result(check: Check) -> str:
    """Write the number, counts in full, with its meaning."""
    if check.number is None:
        return check.meaning
    form = "," if isinstance(check.number, int) else ".3g"
    return f"{check.number:{form}} {check.meaning}"


def _range(words: Sequence[str]) -> str:
    """Write one word, or the smallest and the largest of numbers that differ."""
    if len(set(words)) == 1:
        return words[0]
    ordered = sorted(words, key=_value)
    return f"{ordered[0].rstrip(',;')} to {ordered[-1]}"


def _is_number(word: str) -> bool:
    try:
        _value(word)
    except ValueError:
        return False
    return True


def _value(word: str) -> float:
    return float(word.rstrip(",;").replace(",", ""))

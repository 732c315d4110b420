"""Tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import xarray as xr
from numpy.typing import NDArray
from rich import box
from rich.columns import Columns
from rich.table import Table
from rich.text import Text

from trakstore.markup import cells, one_line, printable
from trakstore.storage.layout import Epoch
from trakstore.storage.split import SplitStatus

if TYPE_CHECKING:
    from trakstore.methods.kernel_report import KernelReport

_LINES = 3  # most lines about missing rows
_EPOCHS = 4  # most lines of epochs, so that everything fits on a screen


class SafeTable(Table):
    """Table that measures foreign text as it is printed, with its control characters written out."""

    def add_column(self, header: Any = "", *given: Any, **options: Any) -> None:
        """Add a column as rich does."""
        super().add_column(_safe(header), *given, **options)

    def add_row(self, *cells: Any, **options: Any) -> None:
        """Add a row as rich does."""
        super().add_row(*map(_safe, cells), **options)


def _safe(cell: Any) -> Any:
    return printable(cell) if isinstance(cell, str) else cell


def facts_table(facts: Mapping[str, str]) -> Table:
    """Make a table of names and values, a line each."""
    table = SafeTable.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, value)
    return table


def completeness_table(status: Sequence[SplitStatus]) -> Table:
    """Make a table of rows by epoch and split; equal neighbouring epochs share a line."""
    splits = sorted({one.split for one in status})
    # A training saved a hundred times has a hundred equal epochs, which are one line.
    cells = {(one.epoch, one.split): _rows(one) for one in status}
    epochs = list(dict.fromkeys(one.epoch for one in status))
    table = plain_table("epoch", *splits)
    groups = groupby(epochs, lambda e: [cells.get((e, split), "-") for split in splits])
    lines = [(list(alike), texts) for texts, alike in groups]
    first = len(lines) if len(lines) <= _EPOCHS else _EPOCHS - 1
    for alike, texts in lines[:first]:
        table.add_row(span(alike), *(_coloured(text) for text in texts))
    if rest := [epoch for alike, _ in lines[first:] for epoch in alike]:
        table.add_row(f"{len(rest)} more", *("--json" for _ in splits))
    return table


def missing_lines(status: Sequence[SplitStatus]) -> list[str]:
    """Write a few lines about missing rows and damaged splits."""
    damaged = [one.damaged_note for one in status if one.damaged_note][:_LINES]
    partial = [one for one in status if not one.complete]
    lines = [f"damaged: {message}" for message in damaged]
    lines += [
        f"missing: {one.split} at epoch {one.epoch}: rows {_ranges(one.missing)}"
        for one in partial[:_LINES]
    ]
    if len(partial) > _LINES:
        lines.append(f"missing: rows of {len(partial) - _LINES} more splits (--json has all)")
    return lines


def kernel_table(reports: Sequence[KernelReport]) -> Table:
    """Make a table with a line for the kernel of each epoch.

    Rows and dim, the damping λ, the condition number without and with it, stable rank
    tr(K)/σ₁, effective rank exp(entropy of the spectrum), and tr(K (K + λI)⁻¹).
    """
    table = plain_table(
        "epoch", "rows", "dim", "λ", "cond.", "damped", "stable r.", "eff. r.", "eff. dim"
    )
    # The kernel depends on the weights of its rows: the table says which.
    names = sorted({one.weighting for one in reports if one.weighting})
    table.caption = f"rows weighted: {', '.join(names)}" if names else None
    for one in reports:
        table.add_row(
            str(one.epoch),
            f"{one.n:,}",
            f"{one.dim:,}",
            *(f"{x:.2g}" for x in (one.lam, one.condition, one.damped_condition)),
            *(f"{x:.1f}" for x in (one.stable_rank, one.effective_rank, one.effective_dim)),
        )
    return table


def top_table(top: xr.Dataset) -> Table:
    """Make a table of the list of each target: train ids with their scores, first one first.

    Parameters
    ----------
    top : Dataset
        From ``top_k``; with ``label`` (target, rank) and ``target_label`` (target,), labels stand in
        brackets, the target's own in green.
    """
    labelled = "label" in top
    table = SafeTable(box=box.SIMPLE_HEAD, show_lines=False)
    table.add_column("target", justify="right")
    order, what = top.attrs["order"], "distance" if top.attrs["order"] == "nearest" else "score"
    table.add_column(f"train{' (label)' if labelled else ''} and {what}, {order} first")
    for at in range(top.sizes["target"]):
        one = top.isel(target=at)
        name = one_line(one["target_id"].item())
        name = f"{name} ({one['target_label'].item()})" if labelled else name
        table.add_row(name, Columns(_entries(one, signed=what == "score"), padding=(0, 2)))
    return table


def example_table(
    names: Sequence[str],
    read_as: Sequence[str],
    labels: NDArray[Any],
    train_labels: NDArray[Any],
    helpful: xr.Dataset,
    harmful: xr.Dataset,
) -> Table:
    """Make a table of targets, with the classes of their most helpful and most harmful train samples.

    Parameters
    ----------
    names, read_as : sequence of str
        Name of each target, and the class predicted by the model.
    labels : array, shape (targets,)
        Their true classes.
    train_labels : array, shape (n,)
        Classes of the train samples.
    helpful, harmful : Dataset
        From ``top_k``, in the order of the targets.
    """
    table = plain_table("target (id)", "read as", "most helpful: classes", "most harmful: classes")
    for row, (name, read) in enumerate(zip(names, read_as, strict=True)):
        lists = (train_labels[top["position"].values[row]] for top in (helpful, harmful))
        table.add_row(name, read, *(_classes(one, labels[row]) for one in lists))
    return table


def _classes(found: NDArray[Any], own: Any) -> Text:
    text = Text()
    for one in found.tolist():
        text.append(f"{one} ", style="green" if one == own else "red")
    return text


def _entries(top: xr.Dataset, signed: bool) -> list[Text]:
    trains = [one_line(one) for one in top["train"].values.tolist()]
    # Entries stand in columns as wide as the terminal allows; equal widths align them.
    width = max(map(cells, trains))
    entries = [Text(" " * (width - cells(one)) + one) for one in trains]
    if "label" in top:
        own = top["target_label"].item()
        for entry, label in zip(entries, top["label"].values.tolist(), strict=True):
            entry.append(f" ({label})", style="green" if label == own else "red")
    sign = "+" if signed else ""
    scores = [f"{score:{sign}#.3g}" for score in top["score"].values.tolist()]
    width = max(map(len, scores))
    for entry, score in zip(entries, scores, strict=True):
        entry.append(f" {score:<{width}}")
    return entries


def plain_table(first: str, *others: str) -> Table:
    """Make an empty table: names on the left, numbers on the right."""
    table = SafeTable(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right")
    return table


def _rows(status: SplitStatus) -> str:
    if status.damaged_note:
        return "damaged"
    if status.complete:
        return f"{status.rows:,}"
    share = 100 * status.written_rows // status.rows
    return f"{status.written_rows:,} of {status.rows:,} ({share}%)"


def _coloured(text: str) -> Text:
    return Text(text, style="" if text.replace(",", "").isdigit() else "yellow")


def span(epochs: Sequence[Epoch], most: int = 5) -> str:
    """Write the names of epochs; of more than ``most``, the ends and the number."""
    if len(epochs) <= most:
        return ", ".join(map(str, epochs))
    return f"{epochs[0]} ... {epochs[-1]} ({len(epochs)} epochs)"


def _ranges(missing: Sequence[tuple[int, int]]) -> str:
    first = ", ".join(f"{start}-{stop - 1}" for start, stop in missing[:5])
    return f"{first} and {len(missing) - 5} more ranges" if len(missing) > 5 else first

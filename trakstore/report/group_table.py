"""Table of mean scores between classes, in the widest form that fits the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.table import Table

from trakstore.markup import one_line
from trakstore.report.terminal_tables import plain_table
from trakstore.report.units import in_powers_of_ten

_NAME = 20  # most cells of a class's name
_OTHERS = 3  # classes that a line of the summary names on each side
_NO_LIMIT = 1_000_000  # cells


class GroupTable:
    """Mean scores of classes of targets with classes of train rows.

    If it fits, there is a line for each class of targets and a column for each class of train rows, or
    the other way round. Otherwise each class of targets has a line with its own class and the classes
    with the largest and the smallest means. No number is ever cut.

    Parameters
    ----------
    means : ndarray of float64, shape (targets, trains)
        Mean scores.
    targets, trains : sequence
        Names of the classes.
    """

    def __init__(
        self, means: NDArray[np.float64], targets: Sequence[object], trains: Sequence[object]
    ) -> None:
        self._scaled, self._unit = in_powers_of_ten(means)
        self._targets = [one_line(one, _NAME) for one in targets]
        self._trains = [one_line(one, _NAME) for one in trains]

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterable[RenderableType]:
        """Render the table, as rich calls it."""
        # Where nothing limits the width, a table measures what it would take.
        free = options.update_width(_NO_LIMIT)
        for table in (self._whole(), self._transposed()):
            if Measurement.get(console, free, table).maximum <= options.max_width:
                yield table
                return
        yield self._summary()

    def _whole(self) -> Table:
        sides = self._targets, self._trains
        return self._matrix("target class", "train classes", self._scaled, *sides)

    def _transposed(self) -> Table:
        sides = self._trains, self._targets
        return self._matrix("train class", "target classes", self._scaled.T, *sides)

    def _matrix(
        self,
        lines: str,
        columns: str,
        numbers: NDArray[np.float64],
        down: Sequence[str],
        across: Sequence[str],
    ) -> Table:
        table = plain_table(lines, *across)
        table.title = f"mean scores, in {self._unit}\ncolumns: {columns}"
        for name, row in zip(down, numbers, strict=True):
            table.add_row(name, *map(_written, row))
        return table

    def _summary(self) -> Table:
        table = plain_table("target class", "own class")
        table.title = (
            f"mean scores, in {self._unit}\nof train classes: the target's own, and others"
        )
        for name in ("largest others", "smallest others"):
            table.add_column(name, overflow="fold")
        for name, row in zip(self._targets, self._scaled, strict=True):
            own = self._trains.index(name) if name in self._trains else None
            order = [at for at in np.argsort(-row, kind="stable").tolist() if at != own]
            ends = order[:_OTHERS], order[::-1][:_OTHERS]
            listed = [
                ", ".join(f"{self._trains[at]} {_written(row[at])}" for at in end) for end in ends
            ]
            table.add_row(name, "-" if own is None else _written(row[own]), *listed)
        table.caption = f"all {self._scaled.size:,} means: --csv or --json"
        return table


def _written(value: float) -> str:
    return f"{value:+z.1f}"

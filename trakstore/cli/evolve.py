"""``trakstore evolve``: scores of some targets from epoch to epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import numpy as np
from rich.console import RenderableType
from typer import Option

from trakstore.cli.lists import hidden_targets
from trakstore.cli.options import ListLength, Target
from trakstore.cli.output import without_nan
from trakstore.cli.request import ScoreRequest, with_request
from trakstore.report.analysis_tables import evolution_table
from trakstore.report.labels import with_labels, with_outputs
from trakstore.scores.sums import group_scores

if TYPE_CHECKING:
    import xarray as xr

SHOWN = 5  # targets, a table for each


@with_request("learning_rate", csv=True)
def evolve(
    k: ListLength = 5,
    target: Target = None,
    together: Annotated[
        bool, Option("--together", help="Take the mean of these targets as one.")
    ] = False,
    *,
    asked: ScoreRequest,
) -> None:
    """Show the scores of targets epoch by epoch, each epoch alone.

    Beside them stand the target's own output and loss at that epoch, where the store has them.

    The first five targets are shown; --json and --csv have all of them.
    """
    from trakstore.analysis.evolution import evolution

    pair, rows, hidden = asked.chosen_targets(target, None if together else SHOWN)
    limit = asked.memory_limit
    with asked.workplace():
        scores = asked.scores().isel(target=rows)
        if together:
            name = np.full(len(rows), f"mean of {len(rows)}")
            scores = group_scores(scores, targets=name, how="mean", memory_limit=limit)
        epochs = evolution(scores, k, memory_limit=limit)
    epochs = with_labels(epochs, pair, None if together else rows)
    epochs = with_outputs(epochs, asked.pairs(), rows, mean=together)
    document = {"method": scores.method, **without_nan(epochs)}
    asked.answer(document, _tables(epochs, hidden), epochs)


def _tables(epochs: xr.Dataset, hidden: int) -> Iterator[RenderableType]:
    for at, name in enumerate(epochs["target_id"].values.tolist()):
        one = epochs.isel(target=at)
        label = f" ({one['target_label'].item()})" if "target_label" in one else ""
        yield f"target {name}{label}"
        yield evolution_table(one)
    yield from hidden_targets(hidden)

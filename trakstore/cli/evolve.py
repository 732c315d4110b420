"""``trakstore evolve``: how the scores of some targets change from epoch to epoch."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import typer

from trakstore.cli.cluster import workplace
from trakstore.cli.lists import say_more, target_rows, with_labels
from trakstore.cli.methods import find_method, make_scores
from trakstore.cli.options import (
    AllowOtherWeights,
    Damping,
    Epochs,
    Json,
    MemoryLimit,
    Method,
    Scheduler,
    StorePath,
    Target,
    Targets,
    Train,
    Workers,
    chosen_epochs,
)
from trakstore.cli.output import console, print_json, without_nan
from trakstore.methods.epochs import epoch_pairs
from trakstore.storage.opening import open_store

__all__ = ["evolve"]

SHOWN = 5  # tables


def evolve(
    store: StorePath,
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="Entries of each list.")] = 5,
    target: Target = None,
    together: Annotated[
        bool, typer.Option("--together", help="The mean of these targets, as one.")
    ] = False,
    targets: Targets = "test",
    train: Train = "train",
    epoch: Epochs = None,
    damping: Damping = 1.0,
    method: Method = "trak",
    memory_limit: MemoryLimit = None,
    allow_other_weights: AllowOtherWeights = False,
    workers: Workers = None,
    scheduler: Scheduler = None,
    as_json: Json = False,
) -> None:
    """Show the scores of targets epoch by epoch, each epoch alone.

    The first five targets are shown; --json has all of them.
    """
    from trakstore.analysis.evolution import evolution
    from trakstore.report.findings import evolution_table
    from trakstore.scores.sums import group_scores

    find_method(method)
    opened, epochs = open_store(store), chosen_epochs(epoch)
    pair = epoch_pairs(opened, targets, train, epochs, allow_other_weights=allow_other_weights)[0]
    rows = target_rows(pair.target, target, targets)
    total, rows = len(rows), rows if as_json or together else rows[:SHOWN]
    with workplace(workers, scheduler):
        scores = make_scores(
            method,
            opened,
            targets=targets,
            train=train,
            epochs=epochs,
            damping=damping,
            memory_limit=memory_limit,
            allow_other_weights=allow_other_weights,
        ).isel(target=rows)
        if together:
            name = np.full(len(rows), f"mean of {len(rows)}")
            scores = group_scores(scores, targets=name, how="mean", memory_limit=memory_limit)
        found = evolution(scores, k, memory_limit=memory_limit)
    found = with_labels(found, pair, None if together else rows)
    if as_json:
        what = {"location": str(opened.location), "method": scores.method}
        print_json({**what, **without_nan(found)})
        return
    out = console()
    for at, name in enumerate(found["target_id"].values.tolist()):
        one = found.isel(target=at)
        label = f" ({one['target_label'].item()})" if "target_label" in one else ""
        out.print(f"target {name}{label}")
        out.print(evolution_table(one))
    say_more(total - len(rows))

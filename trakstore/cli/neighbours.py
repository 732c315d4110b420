"""``trakstore neighbours``: the train samples whose features or activations are nearest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer

from trakstore.cli.cluster import workplace
from trakstore.cli.lists import SHOWN, lists_document, show_lists, target_rows, with_labels
from trakstore.cli.options import (
    AllowOtherWeights,
    Json,
    MemoryLimit,
    Scheduler,
    StorePath,
    Target,
    Targets,
    Train,
    Workers,
)
from trakstore.cli.output import print_json
from trakstore.methods.epochs import epoch_pairs
from trakstore.storage.layout import as_epoch
from trakstore.storage.opening import open_store

if TYPE_CHECKING:
    from trakstore.methods.neighbours import Metric

__all__ = ["neighbours"]


def neighbours(
    store: StorePath,
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="Entries of each list.")] = 10,
    target: Target = None,
    metric: Annotated[str, typer.Option(help="l2 or cosine.")] = "l2",
    activations: Annotated[
        str | None,
        typer.Option(
            metavar="LAYER",
            help="Compare stored activations of a layer; else gradient features.",
            show_default=False,
        ),
    ] = None,
    targets: Targets = "test",
    train: Train = "train",
    epoch: Annotated[
        str | None,
        typer.Option(help="A checkpoint; may be left out where there is one.", show_default=False),
    ] = None,
    memory_limit: MemoryLimit = None,
    allow_other_weights: AllowOtherWeights = False,
    workers: Workers = None,
    scheduler: Scheduler = None,
    as_json: Json = False,
) -> None:
    """List the train samples nearest to each target, by features or activations of a checkpoint.

    The table shows 20 targets at most; --json has all of them.
    """
    from trakstore.methods.neighbours import neighbours as nearest

    opened, one = open_store(store), None if epoch is None else as_epoch(epoch)
    pair = epoch_pairs(opened, targets, train, one, allow_other_weights=allow_other_weights)[0]
    rows = target_rows(pair.target, target, targets)
    total, rows = len(rows), rows if as_json else rows[:SHOWN]
    with workplace(workers, scheduler):
        found = nearest(
            opened,
            targets,
            train,
            one,
            k,
            metric=cast("Metric", metric),
            activations=activations,
            select=rows,
            memory_limit=memory_limit,
            allow_other_weights=allow_other_weights,
        )
    found = with_labels(found, pair, rows)
    if as_json:
        what = {name: found.attrs[name] for name in ("metric", "epoch", "column")}
        print_json(lists_document(found, opened, rows, **what))
    else:
        show_lists(found.rename(distance="score").assign_attrs(order="nearest"), total)

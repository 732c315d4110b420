"""``trakstore topk``: the train samples with the first scores for each target."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from trakstore.cli.cluster import workplace
from trakstore.cli.lists import SHOWN, lists_document, show_lists, target_rows, with_labels
from trakstore.cli.methods import find_method, make_scores
from trakstore.cli.options import (
    AllowOtherWeights,
    Damping,
    Epochs,
    Json,
    LearningRate,
    MemoryLimit,
    Method,
    Scheduler,
    StorePath,
    Target,
    Targets,
    Train,
    Workers,
    chosen_epochs,
    learning_rates,
)
from trakstore.cli.output import print_json
from trakstore.errors import TrakStoreError
from trakstore.methods.epochs import epoch_pairs
from trakstore.storage.opening import open_store

if TYPE_CHECKING:
    import xarray as xr

    from trakstore.scores.factored import Scores
    from trakstore.scores.top_k import Order

__all__ = ["topk"]


def topk(
    store: StorePath,
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="Entries of each list.")] = 10,
    target: Target = None,
    smallest: Annotated[bool, typer.Option("--smallest", help="The most negative first.")] = False,
    magnitude: Annotated[
        bool, typer.Option("--magnitude", help="The largest |score| first.")
    ] = False,
    approximate: Annotated[
        bool,
        typer.Option("--approximate", help="Two passes, for large dims; says its recall."),
    ] = False,
    targets: Targets = "test",
    train: Train = "train",
    epoch: Epochs = None,
    damping: Damping = 1.0,
    method: Method = "trak",
    learning_rate: LearningRate = None,
    memory_limit: MemoryLimit = None,
    allow_other_weights: AllowOtherWeights = False,
    workers: Workers = None,
    scheduler: Scheduler = None,
    as_json: Json = False,
) -> None:
    """List the train samples with the largest scores for each target.

    The table shows 20 targets at most; --json has all of them.
    """
    order = _order(smallest, magnitude)
    find_method(method)
    opened, epochs = open_store(store), chosen_epochs(epoch)
    pair = epoch_pairs(opened, targets, train, epochs, allow_other_weights=allow_other_weights)[0]
    if k > pair.train.rows:  # before a kernel is computed
        raise TrakStoreError(f"--k must be in 1..{pair.train.rows}, the rows of {train}, got {k}")
    rows = target_rows(pair.target, target, targets)
    total, rows = len(rows), rows if as_json else rows[:SHOWN]
    with workplace(workers, scheduler):
        scores = make_scores(
            method,
            opened,
            targets=targets,
            train=train,
            epochs=epochs,
            damping=damping,
            memory_limit=memory_limit,
            learning_rates=learning_rates(learning_rate),
            allow_other_weights=allow_other_weights,
        )
        top = _lists(scores.isel(target=rows), k, order, approximate, memory_limit)
    top = with_labels(top, pair, rows)
    if as_json:
        what = {"method": scores.method, "order": order, "epochs": list(scores.epochs)}
        print_json(lists_document(top, opened, rows, **what, **_recall(top)))
    else:
        show_lists(top, total)


def _lists(
    scores: Scores, k: int, order: Order, approximate: bool, memory_limit: str | None
) -> xr.Dataset:
    from trakstore.scores.top_k import top_k
    from trakstore.scores.two_pass import approximate_top_k

    run = approximate_top_k if approximate else top_k
    return run(scores, k, order=order, memory_limit=memory_limit)


def _recall(top: xr.Dataset) -> dict[str, Any]:
    return {name: top.attrs[name] for name in ("recall", "checked") if name in top.attrs}


def _order(smallest: bool, magnitude: bool) -> Order:
    if smallest and magnitude:
        raise typer.BadParameter("--smallest and --magnitude exclude each other")
    return "smallest" if smallest else "magnitude" if magnitude else "largest"
